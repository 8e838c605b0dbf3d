//! Whether this machine can run podnet: every feature is tried, none concluded from a version.

use std::fs;
use std::path::Path;

use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use nix::sched::{CloneFlags, unshare};

use super::attach::{MARK, program_mut};
use super::error::Error;
use super::load::{find_cgroup, load_interface_programs, load_socket_programs, object};
use super::pins::on_bpffs;
use super::{Settings, SocketLb, xdp};
use crate::error::chain;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As it should be.
    Ok,
    /// podnet runs, but not as well as it could.
    Warning,
    /// podnet does not run.
    Failure,
}

/// What was found out about one feature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The feature.
    pub what: String,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Finding {
    /// A feature that is there.
    pub fn ok(what: &str, detail: impl Into<String>) -> Self {
        Self { what: what.to_owned(), level: Level::Ok, detail: detail.into(), hint: None }
    }

    /// One that is not, or not as it should be.
    pub fn bad(what: &str, level: Level, detail: impl Into<String>, hint: &str) -> Self {
        Self { what: what.to_owned(), level, detail: detail.into(), hint: Some(hint.to_owned()) }
    }
}

/// Tries what `settings` need. Programs are loaded over maps of their own and attached only to the
/// loopback interface of a network namespace made for it; nothing stays.
pub fn probe(settings: &Settings) -> Vec<Finding> {
    let mut findings = vec![rights(), bpffs(&settings.bpffs), btf()];
    match load(&settings.bpffs) {
        Ok(mut ebpf) => {
            findings.push(verified(
                "programs at interfaces",
                load_interface_programs(&mut ebpf),
                "podnet needs Linux 5.18 or newer",
            ));
            findings.push(tcx(&mut ebpf));
            findings.push(masquerade(can_masquerade(&mut ebpf)));
            if let Some(policy) = settings.xdp {
                findings.push(verified(
                    "program at network cards",
                    xdp::load(&mut ebpf, policy),
                    "use --xdp off; XDP needs Linux 5.18 or newer",
                ));
            }
            if settings.socket_lb != SocketLb::Off {
                findings.push(verified(
                    "programs at sockets",
                    load_socket_programs(&mut ebpf),
                    "use --socket-lb off; podnet's socket layer needs Linux 5.18 or newer",
                ));
            }
        }
        Err(error) => findings.push(Finding::bad(
            "kernel programs",
            Level::Failure,
            error.to_string(),
            "run as root on Linux 5.18 or newer, with BPF not locked down",
        )),
    }
    if settings.socket_lb != SocketLb::Off {
        findings.push(match find_cgroup(settings.cgroup.as_deref()) {
            Ok(path) => Finding::ok("cgroup2", path.display().to_string()),
            Err(error) => Finding::bad(
                "cgroup2",
                Level::Failure,
                error.to_string(),
                "mount one, name one with --cgroup, or use --socket-lb off",
            ),
        });
    }
    findings.extend(["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"].map(forwarding));
    findings
}

/// The effective capabilities by their bits in capabilities(7).
fn rights() -> Finding {
    const NEEDED: [(&str, u32); 3] = [("CAP_NET_ADMIN", 12), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
    const SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective & 1 << bit != 0;
    // Before they were split off, CAP_SYS_ADMIN stood for the other two.
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(name, bit)| !(has(*bit) || has(SYS_ADMIN) && *name != "CAP_NET_ADMIN"))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        Finding::ok("rights", "all capabilities that podnet needs")
    } else {
        Finding::bad("rights", Level::Failure, format!("without {}", missing.join(", ")), "run as root")
    }
}

fn bpffs(path: &Path) -> Finding {
    match on_bpffs(path) {
        Ok(()) => Finding::ok("bpffs", path.display().to_string()),
        Err(error) => Finding::bad(
            "bpffs",
            Level::Failure,
            error.to_string(),
            "mount -t bpf bpf /sys/fs/bpf, or name another with --bpffs",
        ),
    }
}

fn btf() -> Finding {
    const BTF: &str = "/sys/kernel/btf/vmlinux";
    if Path::new(BTF).exists() {
        Finding::ok("BTF", BTF)
    } else {
        Finding::bad(
            "BTF",
            Level::Warning,
            "the kernel describes no types of its own",
            "podnet runs without; a kernel with CONFIG_DEBUG_INFO_BTF lets bpftool show its maps by field",
        )
    }
}

/// The object over small maps that are not pinned.
fn load(bpffs: &Path) -> Result<Ebpf, Error> {
    let place = bpffs.ancestors().skip(1).find(|ancestor| ancestor.exists()).unwrap_or(bpffs);
    let directory = tempfile::Builder::new().prefix("podnet-check-").tempdir_in(place);
    let directory = directory.map_err(|source| Error::File {
        action: "making a directory in",
        path: place.to_owned(),
        source,
    })?;
    let loaded = EbpfLoader::new().btf(None).default_map_pin_directory(directory.path()).load(object()?);
    Ok(loaded?)
}

/// What the verifier said of some programs.
fn verified(what: &str, loaded: Result<(), Error>, hint: &str) -> Finding {
    match loaded {
        Ok(()) => Finding::ok(what, "the verifier accepts them"),
        Err(error) => Finding::bad(what, Level::Failure, chain(&error), hint),
    }
}

/// Whether the kernel has tcx. A thread in a network namespace of its own tries it at `lo`.
fn tcx(ebpf: &mut Ebpf) -> Finding {
    let tried = std::thread::scope(|scope| {
        scope
            .spawn(|| -> Result<(), String> {
                unshare(CloneFlags::CLONE_NEWNET).map_err(|error| {
                    format!("not tried, for want of a network namespace to try it in: {error}")
                })?;
                let program: &mut SchedClassifier =
                    program_mut(ebpf, "from_pod").map_err(|error| error.to_string())?;
                let options = TcAttachOptions::TcxOrder(LinkOrder::first());
                let attached = program.attach_with_options("lo", TcAttachType::Ingress, options);
                let id = attached.map_err(|error| chain(&error))?;
                program.detach(id).map_err(|error| chain(&error))
            })
            .join()
            .unwrap_or_else(|_| Err("the attempt ended early".to_owned()))
    });
    match tried {
        Ok(()) => Finding::ok("tcx", "programs are replaced in place"),
        Err(error) => Finding::bad(
            "tcx",
            Level::Warning,
            error,
            "podnet uses clsact filters where there is no tcx; Linux 6.6 or newer has it",
        ),
    }
}

/// Whether the kernel tells programs what address of this node a packet would leave it by: a program asks.
pub(super) fn can_masquerade(ebpf: &mut Ebpf) -> Result<bool, Error> {
    /// The shortest frame that the kernel runs programs over.
    const FRAME: [u8; 15] = [0; 15];
    let failed = |source| Error::Load { program: MARK, source };
    let program: &mut SchedClassifier = program_mut(ebpf, MARK)?;
    let options = TestRunOptions { data_in: Some(&FRAME), ..TestRunOptions::default() };
    Ok(program.test_run(options).map_err(failed)?.return_value != 0)
}

fn masquerade(tried: Result<bool, Error>) -> Finding {
    const WHAT: &str = "masquerading";
    let found = match tried {
        Ok(true) => return Finding::ok(WHAT, "the kernel tells programs this node's own addresses"),
        Ok(false) => "the kernel does not tell programs this node's own addresses".to_owned(),
        Err(error) => format!("could not be tried: {}", chain(&error)),
    };
    Finding::bad(
        WHAT,
        Level::Warning,
        found,
        "Linux 6.7 or newer does; without, Services do not reach backends on other nodes for clients outside, \
         nor with --masquerade-all",
    )
}

fn forwarding(setting: &str) -> Finding {
    let path = format!("/proc/sys/{}", setting.replace('.', "/"));
    match fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("1" | "2") => Finding::ok(setting, "packets are forwarded"),
        _ => Finding::bad(
            setting,
            Level::Warning,
            "packets of this family are not forwarded",
            "pods reach each other only if the node forwards; most CNIs set this",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_cannot_masquerade_is_good_for_the_rest() {
        assert_eq!(masquerade(Ok(true)).level, Level::Ok);
        let finding = masquerade(Ok(false));
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.hint.is_some_and(|hint| hint.contains("6.7")));
        let error = masquerade(Err(Error::NoObject));
        assert_eq!(error.level, Level::Warning);
        assert!(error.detail.contains("no kernel programs"), "{}", error.detail);
    }
}
