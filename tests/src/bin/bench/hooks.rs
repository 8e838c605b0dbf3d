//! What it costs to have programs at interfaces at all.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use object::write::{Object, StandardSegment, Symbol, SymbolSection};
use object::{Architecture, BinaryFormat, Endianness, SectionKind, SymbolFlags, SymbolKind, SymbolScope};
use tests::node::Node;

/// `r0 = TC_ACT_UNSPEC; exit`: the next one decides.
const PASS: [u8; 16] = [0xb7, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x95, 0, 0, 0, 0, 0, 0, 0];
const NAME: &str = "pass";

/// Programs that do nothing, where podnet's would be. They are there as long as this value.
pub(crate) struct Hooks {
    _ebpf: Ebpf,
}

impl Hooks {
    /// Attaches them by tcx, in both directions.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(crate) fn attach(node: &Node, interfaces: &[&str]) -> Result<Self> {
        let mut ebpf = Ebpf::load(&program()?).context("cannot read a program")?;
        node.place().netns.run(|| {
            let program = ebpf.program_mut(NAME).context("the program is missing")?;
            let program: &mut SchedClassifier = program.try_into()?;
            program.load().context("cannot load a program")?;
            for interface in interfaces {
                for direction in [TcAttachType::Egress, TcAttachType::Ingress] {
                    let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                    program
                        .attach_with_options(interface, direction, options)
                        .with_context(|| format!("cannot attach a program to {interface}"))?;
                }
            }
            Ok(())
        })?;
        Ok(Self { _ebpf: ebpf })
    }
}

/// The object file.
fn program() -> Result<Vec<u8>> {
    let mut object = Object::new(BinaryFormat::Elf, Architecture::Bpf, Endianness::Little);
    let section = object.add_section(
        object.segment_name(StandardSegment::Text).to_vec(),
        b"classifier".to_vec(),
        SectionKind::Text,
    );
    let value = object.append_section_data(section, &PASS, 8);
    object.add_symbol(Symbol {
        name: NAME.into(),
        value,
        size: PASS.len() as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Dynamic,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    object.write().context("cannot write a program")
}
