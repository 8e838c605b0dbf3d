//! What the programs cost: instructions and stack stay within budgets that are checked in.
//!
//! A budget is a promise to the reader, not a limit of the kernel's: a change that needs more raises it,
//! in the same commit, with a reason. They leave room for the compilers that `cargo xtask setup` may find, which
//! differ by a tenth (measured with rustc 1.96 and nightly 1.97).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aya::programs::{CgroupSockAddr, Program, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use podnet_common::abi;
use podnet_common::dns::name::Zone;
use tests::require;
use zerocopy::IntoBytes as _;

/// What a program may cost.
struct Budget {
    program: &'static str,
    /// Instructions of the program.
    instructions: usize,
    /// Instructions that the verifier walks through, over all paths; the kernel's limit is a million.
    verified: u32,
    /// Bytes of stack; the kernel's limit is 512.
    stack: usize,
}

const BUDGETS: [Budget; 36] = [
    Budget { program: "from_pod", instructions: 1960, verified: 25_000, stack: 370 },
    Budget { program: "to_pod", instructions: 1150, verified: 5000, stack: 350 },
    Budget { program: "from_net", instructions: 1700, verified: 25_000, stack: 370 },
    Budget { program: "to_net", instructions: 1650, verified: 16_000, stack: 360 },
    Budget { program: "from_pod_rest", instructions: 6200, verified: 480_000, stack: 450 },
    Budget { program: "to_pod_rest", instructions: 4000, verified: 100_000, stack: 440 },
    Budget { program: "from_net_rest", instructions: 5900, verified: 450_000, stack: 450 },
    Budget { program: "to_net_rest", instructions: 5250, verified: 270_000, stack: 460 },
    Budget { program: "from_pod_sctp", instructions: 2250, verified: 240_000, stack: 370 },
    Budget { program: "to_pod_sctp", instructions: 1450, verified: 35_000, stack: 350 },
    Budget { program: "from_net_sctp", instructions: 2000, verified: 240_000, stack: 370 },
    Budget { program: "to_net_sctp", instructions: 1950, verified: 125_000, stack: 360 },
    Budget { program: "from_pod_open", instructions: 6050, verified: 320_000, stack: 450 },
    Budget { program: "from_net_open", instructions: 5800, verified: 320_000, stack: 440 },
    Budget { program: "to_net_open", instructions: 6000, verified: 260_000, stack: 430 },
    Budget { program: "from_pod_complain", instructions: 1400, verified: 25_000, stack: 320 },
    Budget { program: "from_net_complain", instructions: 1400, verified: 25_000, stack: 320 },
    Budget { program: "to_net_complain", instructions: 1400, verified: 25_000, stack: 320 },
    Budget { program: "from_pod_renew", instructions: 2250, verified: 12_000, stack: 360 },
    Budget { program: "from_net_renew", instructions: 1650, verified: 12_000, stack: 360 },
    Budget { program: "to_net_renew", instructions: 1650, verified: 12_000, stack: 360 },
    Budget { program: "from_pod_answer", instructions: 4200, verified: 520_000, stack: 490 },
    Budget { program: "from_pod_unanswered", instructions: 1960, verified: 25_000, stack: 370 },
    Budget { program: "from_net_xdp", instructions: 2400, verified: 40_000, stack: 370 },
    Budget { program: "from_net_xdp_generic", instructions: 2400, verified: 40_000, stack: 370 },
    Budget { program: "from_net_xdp_open", instructions: 3600, verified: 560_000, stack: 450 },
    Budget { program: "from_net_xdp_generic_open", instructions: 3600, verified: 560_000, stack: 450 },
    Budget { program: "can_masquerade", instructions: 40, verified: 500, stack: 80 },
    Budget { program: "connect4", instructions: 350, verified: 560, stack: 140 },
    Budget { program: "connect6", instructions: 350, verified: 560, stack: 150 },
    Budget { program: "sendmsg4", instructions: 420, verified: 760, stack: 200 },
    Budget { program: "sendmsg6", instructions: 420, verified: 760, stack: 200 },
    Budget { program: "recvmsg4", instructions: 55, verified: 60, stack: 48 },
    Budget { program: "recvmsg6", instructions: 60, verified: 60, stack: 48 },
    Budget { program: "getpeername4", instructions: 55, verified: 60, stack: 48 },
    Budget { program: "getpeername6", instructions: 60, verified: 60, stack: 48 },
];

/// One instruction of eBPF (RFC 9669, 3).
#[derive(Clone, Copy)]
struct Instruction {
    opcode: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn all(code: &[u8]) -> Vec<Self> {
        code.chunks_exact(8)
            .map(|bytes| Self {
                opcode: bytes[0],
                destination: bytes[1] & 0x0f,
                source: bytes[1] >> 4,
                offset: i16::from_le_bytes([bytes[2], bytes[3]]),
                immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
            })
            .collect()
    }
}

/// How deep a program reaches into its stack: by loads and stores relative to the frame pointer, and by
/// pointers made of it.
fn stack_depth(code: &[Instruction]) -> usize {
    const FRAME_POINTER: u8 = 10;
    const MOV: u8 = 0xbf;
    const ADD_IMMEDIATE: u8 = 0x07;
    let mut deepest = 0_i64;
    for (at, instruction) in code.iter().enumerate() {
        let class = instruction.opcode & 0x07;
        let touches = match class {
            // LDX reads through its source register, ST and STX write through the destination.
            1 => instruction.source == FRAME_POINTER,
            2 | 3 => instruction.destination == FRAME_POINTER,
            _ => false,
        };
        if touches {
            deepest = deepest.min(i64::from(instruction.offset));
        }
        if instruction.opcode == MOV && instruction.source == FRAME_POINTER {
            let next = code[at + 1..]
                .iter()
                .find(|next| next.opcode == ADD_IMMEDIATE && next.destination == instruction.destination);
            deepest = deepest.min(next.map_or(0, |next| i64::from(next.immediate)));
        }
    }
    usize::try_from(-deepest).expect("the stack grows down")
}

/// The code of each program in the object.
fn programs(object: &[u8]) -> BTreeMap<String, Vec<Instruction>> {
    let file = object::File::parse(object).expect("an ELF file");
    file.symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.size() > 0)
        .filter_map(|symbol| {
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            let start = usize::try_from(symbol.address()).ok()?;
            let code = section.data().ok()?.get(start..start + usize::try_from(symbol.size()).ok()?)?;
            Some((symbol.name().ok()?.to_owned(), Instruction::all(code)))
        })
        .collect()
}

fn object() -> Option<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/podnet-ebpf.o");
    match fs::read(path) {
        Ok(object) => Some(object),
        Err(_) => require::lacking("there is no eBPF object: `cargo xtask build-ebpf` makes it"),
    }
}

#[test]
fn programs_stay_within_their_budgets_of_instructions_and_stack() {
    let Some(object) = object() else { return };
    let programs = programs(&object);
    for budget in &BUDGETS {
        let code = &programs[budget.program];
        let stack = stack_depth(code);
        println!("{:14} {:5} instructions, {:3} bytes of stack", budget.program, code.len(), stack);
        assert!(stack > 0, "{} uses some stack", budget.program);
        assert!(code.len() <= budget.instructions, "{}: {} instructions", budget.program, code.len());
        assert!(stack <= budget.stack, "{}: {stack} bytes of stack", budget.program);
    }
}

/// The object, loaded over maps of its own.
fn loaded(object: &[u8]) -> Ebpf {
    let pins = Path::new("/sys/fs/bpf").join(format!("podnet-verifier-{}", std::process::id()));
    fs::create_dir(&pins).expect("bpffs is mounted");
    // The verifier knows these numbers, and leaves out what does not run because of them.
    let zone = Zone::new("cluster.local", 5).expect("a zone");
    let loaded = EbpfLoader::new()
        .btf(None)
        .default_map_pin_directory(&pins)
        .override_global(abi::ANSWERS_NAMES, &1_u64, true)
        .override_global(abi::ZONE, zone.as_bytes(), true)
        .load(object);
    fs::remove_dir_all(&pins).expect("the pins are ours");
    loaded.expect("the object loads")
}

#[test]
fn the_verifier_accepts_every_program_within_its_budget() {
    let Some(()) = require::root() else { return };
    let Some(object) = object() else { return };
    // A program array is for XDP programs of one kind: each agent loads those of one.
    let (mut ebpf, mut generic) = (loaded(&object), loaded(&object));
    let mut seen = 0;
    for budget in &BUDGETS {
        let ebpf = if budget.program.contains("generic") { &mut generic } else { &mut ebpf };
        let program = ebpf.program_mut(budget.program).expect("the program is in the object");
        match program {
            Program::SchedClassifier(program) => SchedClassifier::load(program),
            Program::CgroupSockAddr(program) => CgroupSockAddr::load(program),
            Program::Xdp(program) => Xdp::load(program),
            other => panic!("{} is of an unexpected type: {other:?}", budget.program),
        }
        .unwrap_or_else(|error| panic!("{}: {error:?}", budget.program));
        let info = match program {
            Program::SchedClassifier(program) => program.info(),
            Program::CgroupSockAddr(program) => program.info(),
            Program::Xdp(program) => program.info(),
            _ => unreachable!("matched above"),
        };
        let verified = info.expect("the program is loaded").verified_instruction_count().expect("Linux 5.16");
        println!("{:14} {verified:6} instructions verified", budget.program);
        assert!(verified <= budget.verified, "{}: {verified} instructions verified", budget.program);
        seen += 1;
    }
    assert_eq!(seen, ebpf.programs().count(), "every program has a budget");
}
