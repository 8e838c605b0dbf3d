//! A lab, and the removal of all that it made.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, fs, process};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use crate::cards::Idle;
use crate::netns::{self, Netns};
use crate::node::Node;
use crate::process::helper;
use crate::{cgroup, require};

/// What the names of everything that a lab makes begin with.
const PREFIX: &str = "podnet-lab-";
/// Where bpffs is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// Where nodes send what is for none of them.
pub(crate) const GATEWAY_V4: &str = "172.18.0.254";
pub(crate) const GATEWAY_V6: &str = "fd00:172:18::fe";

/// A cluster of namespaces. Clones are the same lab; with the last one, and the last node and pod, it ends.
#[derive(Clone)]
pub struct Lab(Arc<Inner>);

struct Inner {
    id: String,
    janitor: Mutex<Child>,
    fabric: Netns,
    next_node: AtomicU8,
    next_port: AtomicU32,
}

impl Lab {
    /// Makes a lab, if this process may and the podnet binary is there; `None` if the test is to be
    /// skipped, which has been said then.
    ///
    /// # Errors
    /// If something goes wrong that should not.
    pub fn start() -> Result<Option<Self>> {
        if require::root().is_none() || require::podnet().is_none() {
            return Ok(None);
        }
        Self::without_podnet().map(Some)
    }

    /// Makes a lab for tests that run no podnet.
    ///
    /// # Errors
    /// If this process is not root, or something goes wrong that should not.
    pub fn without_podnet() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        remove_stale();
        mount_bpffs()?;
        let id = format!("{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // From here on whatever happens is cleaned up after.
        let janitor = start_janitor(&id)?;
        let folders = Folders::of(&id)?;
        for folder in [&folders.files, &folders.cgroup, &folders.bpffs] {
            fs::create_dir(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let fabric = Netns::create(format!("{PREFIX}{id}-fabric"))?;
        fabric.sysctl(&["net/ipv6/conf/default/disable_ipv6=1"])?;
        fabric.batch("link add fabric type bridge\nlink set fabric up")?;
        fabric.sysctl(&[
            "net/ipv6/conf/fabric/disable_ipv6=0",
            "net/ipv4/ip_forward=1",
            "net/ipv6/conf/all/forwarding=1",
        ])?;
        // The nodes' gateway. It knows the way to pods and to nothing else, and says so.
        let mut lines = format!(
            "addr add {GATEWAY_V4}/24 dev fabric\naddr add {GATEWAY_V6}/64 dev fabric nodad\n\
             route add unreachable default\nroute add unreachable ::/0\n"
        );
        for node in 1..=4 {
            lines.push_str(&format!(
                "route add 10.244.{node}.0/24 via 172.18.0.{node}\n\
                 route add fd00:10:244:{node:x}::/64 via fd00:172:18::{node:x}\n"
            ));
        }
        fabric.batch(&lines)?;
        Ok(Self(Arc::new(Inner {
            id,
            janitor: Mutex::new(janitor),
            fabric,
            next_node: AtomicU8::new(1),
            next_port: AtomicU32::new(0),
        })))
    }

    /// What the names of all that belongs to the lab have in common.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// Adds a node to the cluster.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn node(&self, name: &str) -> Result<Node> {
        Node::create(self, name, self.0.next_node.fetch_add(1, Ordering::Relaxed))
    }

    /// Adds a node that is for a CNI to wire: without a bridge, and without a way to the pods of other nodes.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn bare_node(&self, name: &str) -> Result<Node> {
        Node::bare(self, name, self.0.next_node.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes a namespace of the lab.
    pub(crate) fn netns(&self, name: &str) -> Result<Netns> {
        Netns::create(format!("{PREFIX}{}-{name}", self.0.id))
    }

    /// Plugs a namespace into the network between the nodes, where it gets an interface `eth0`.
    pub(crate) fn plug_in(&self, netns: &Netns) -> Result<()> {
        let port = format!("port{}", self.0.next_port.fetch_add(1, Ordering::Relaxed));
        self.0.fabric.batch(&format!(
            "link add {port} type veth peer name eth0 netns {}\nlink set {port} master fabric up",
            netns.name()
        ))?;
        netns.batch("link set eth0 up")
    }

    /// Has all ports of the network between the nodes take frames of the nodes' drivers.
    pub(crate) fn idle_at_ports(&self) -> Result<Idle> {
        let mut idle = Idle::load(self)?;
        let ports: Vec<String> =
            (0..self.0.next_port.load(Ordering::Relaxed)).map(|number| format!("port{number}")).collect();
        self.0.fabric.run(|| idle.attach(&ports))?;
        Ok(idle)
    }

    /// A folder for files, removed with the lab.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        created(Folders::of(&self.0.id)?.files.join(name))
    }

    /// A cgroup of the lab.
    pub(crate) fn cgroup(&self, name: &str) -> Result<PathBuf> {
        created(Folders::of(&self.0.id)?.cgroup.join(name))
    }

    /// A place on bpffs; it is not created.
    ///
    /// # Errors
    /// If the lab has no folders.
    pub fn bpffs(&self, name: &str) -> Result<PathBuf> {
        Ok(Folders::of(&self.0.id)?.bpffs.join(name))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let janitor = self.janitor.get_mut().unwrap_or_else(PoisonError::into_inner);
        // The end of its input is the janitor's call to work.
        drop(janitor.stdin.take());
        let _ = janitor.wait();
    }
}

fn created(folder: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    Ok(folder)
}

/// A process that outlives this one, whatever ends it, to clean up.
fn start_janitor(id: &str) -> Result<Child> {
    use std::os::unix::process::CommandExt as _;
    helper()?
        .args(["janitor", id])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Ctrl-C in a terminal goes to the group of the test, not to the janitor.
        .process_group(0)
        .spawn()
        .context("cannot start the lab's janitor")
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    if mounts.lines().any(|line| line.split(' ').nth(1) == Some(BPFFS)) {
        return Ok(());
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("cannot mount bpffs at {BPFFS}"))
}

/// Where a lab keeps things, its namespaces apart.
struct Folders {
    files: PathBuf,
    cgroup: PathBuf,
    bpffs: PathBuf,
}

impl Folders {
    fn roots() -> Result<[PathBuf; 3]> {
        Ok([env::temp_dir(), cgroup::root()?, PathBuf::from(BPFFS)])
    }

    fn of(id: &str) -> Result<Self> {
        let [files, cgroup, bpffs] = Self::roots()?.map(|root| root.join(format!("{PREFIX}{id}")));
        Ok(Self { files, cgroup, bpffs })
    }
}

/// Removes everything that the lab with this id has made, its processes included.
///
/// # Errors
/// If something withstands.
pub fn remove(id: &str) -> Result<()> {
    let folders = Folders::of(id)?;
    let processes = cgroup::remove(&folders.cgroup);
    let mut result = processes.and(remove_folder(&folders.bpffs)).and(remove_folder(&folders.files));
    let prefix = format!("{PREFIX}{id}-");
    for name in names(Path::new(netns::FOLDER)) {
        if name.starts_with(&prefix) {
            result = result.and(netns::remove(&name));
        }
    }
    result
}

/// Removes what is left of labs whose process is no more.
fn remove_stale() {
    let mut folders = vec![PathBuf::from(netns::FOLDER)];
    folders.extend(Folders::roots().into_iter().flatten());
    for name in folders.iter().flat_map(|folder| names(folder)) {
        let Some((pid, counter)) = name.strip_prefix(PREFIX).and_then(|rest| {
            let mut words = rest.split('-');
            Some((words.next()?.parse::<u32>().ok()?, words.next()?.parse::<u32>().ok()?))
        }) else {
            continue;
        };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            // Another lab may be at it too, and what is left now is for the next to remove.
            let _ = remove(&format!("{pid}-{counter}"));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if folder.exists() => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}
