//! The interfaces that face pods: which they are, as they come and go.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use futures::channel::mpsc::UnboundedReceiver;
use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::time::sleep;
use tracing::warn;

/// How long to wait before netlink is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// Names of interfaces that face pods, as globs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

impl Patterns {
    /// What the common network plugins call the host's end of a pod's link: `veth*` the bridge and ptp
    /// plugins (and so flannel, kindnet, Weave Net, kube-router, k3s), `cali*` Calico and Canal, `lxc*`
    /// Cilium, `eni*` the AWS VPC CNI, `azv*` Azure CNI, `gke*` GKE.
    ///
    /// OVN-Kubernetes and Antrea name links after the pod or a hash of it, and switch them in Open vSwitch:
    /// such a cluster names its own patterns.
    pub const DEFAULT: &str = "veth*,cali*,lxc*,eni*,azv*,gke*";

    /// Whether one of the patterns matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| glob_match::glob_match(pattern, name))
    }
}

impl FromStr for Patterns {
    type Err = Infallible;

    fn from_str(list: &str) -> Result<Self, Infallible> {
        let patterns = list.split(',').map(str::trim).filter(|pattern| !pattern.is_empty());
        Ok(Self(patterns.map(str::to_owned).collect()))
    }
}

impl fmt::Display for Patterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(","))
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its frames are Ethernet's.
    pub ethernet: bool,
}

/// News of interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// These are all there are.
    All(Vec<Link>),
    /// One is new or has changed.
    Changed(Link),
    /// The one with this index is gone.
    Gone(u32),
}

/// What to do about an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It faces a pod.
    Attach(Link),
    /// It does not, or is gone.
    Detach(u32),
}

/// Which interfaces face pods, by what netlink has told.
#[derive(Debug)]
pub struct Facing {
    patterns: Patterns,
    attached: BTreeMap<u32, Option<String>>,
}

impl Facing {
    /// Interfaces by `patterns`; `attached` are those that an earlier agent has left attached.
    pub fn new(patterns: Patterns, attached: impl IntoIterator<Item = u32>) -> Self {
        Self { patterns, attached: attached.into_iter().map(|index| (index, None)).collect() }
    }

    /// What is to be done about some news.
    pub fn handle(&mut self, news: News) -> Vec<Action> {
        match news {
            News::All(links) => {
                let gone: Vec<u32> = self
                    .attached
                    .keys()
                    .filter(|index| links.iter().all(|link| link.index != **index))
                    .copied()
                    .collect();
                let gone = gone.into_iter().filter_map(|index| self.gone(index)).collect::<Vec<_>>();
                gone.into_iter().chain(links.into_iter().filter_map(|link| self.changed(link))).collect()
            }
            News::Changed(link) => self.changed(link).into_iter().collect(),
            News::Gone(index) => self.gone(index).into_iter().collect(),
        }
    }

    /// Notes that an action has failed: it is due again with the interface's next change.
    pub fn failed(&mut self, index: u32) {
        self.attached.remove(&index);
    }

    /// How many interfaces face pods.
    pub fn count(&self) -> usize {
        self.attached.len()
    }

    fn changed(&mut self, link: Link) -> Option<Action> {
        if !link.ethernet || !self.patterns.matches(&link.name) {
            return self.gone(link.index);
        }
        let name = Some(link.name.clone());
        let attached = self.attached.insert(link.index, name).is_some_and(|before| before.is_some());
        (!attached).then_some(Action::Attach(link))
    }

    fn gone(&mut self, index: u32) -> Option<Action> {
        self.attached.remove(&index).map(|_| Action::Detach(index))
    }
}

type Messages = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// Netlink's news of the interfaces of this network namespace.
pub struct Interfaces {
    handle: Handle,
    messages: Messages,
    /// Whether news may have been missed, so that all has to be listed.
    stale: bool,
}

impl Interfaces {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, messages) = new_multicast_connection(&[MulticastGroup::Link])?;
        tokio::spawn(connection);
        Ok(Self { handle, messages, stale: true })
    }

    /// The next news: all interfaces first, and again whenever some may have been missed. A call that is
    /// given up loses nothing.
    pub async fn next(&mut self) -> News {
        loop {
            if self.stale {
                match self.list().await {
                    Ok(links) => {
                        self.stale = false;
                        return News::All(links);
                    }
                    Err(error) => {
                        warn!(%error, "the interfaces cannot be listed; podnet tries again");
                        sleep(PAUSE).await;
                        continue;
                    }
                }
            }
            match self.messages.next().await.map(|(message, _)| message.payload) {
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(message))) => {
                    if let Some(link) = link(&message) {
                        return News::Changed(link);
                    }
                }
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message))) => {
                    return News::Gone(message.header.index);
                }
                Some(NetlinkPayload::Overrun(_)) => self.stale = true,
                Some(_) => {}
                None => {
                    self.stale = true;
                    sleep(PAUSE).await;
                    match Self::open() {
                        Ok(again) => *self = again,
                        Err(error) => warn!(%error, "netlink cannot be listened to; podnet tries again"),
                    }
                }
            }
        }
    }

    async fn list(&self) -> Result<Vec<Link>, rtnetlink::Error> {
        let messages = self.handle.link().get().execute();
        messages.try_filter_map(|message| async move { Ok(link(&message)) }).try_collect().await
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    Some(Link { index: message.header.index, name, ethernet })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str) -> Link {
        Link { index, name: name.to_owned(), ethernet: true }
    }

    fn facing(attached: &[u32]) -> Facing {
        let Ok(patterns) = Patterns::DEFAULT.parse();
        Facing::new(patterns, attached.iter().copied())
    }

    #[test]
    fn patterns_are_globs() {
        let Ok(patterns) = " veth*, cali*,pod? ,".parse::<Patterns>();
        assert!(["veth1a", "cali123", "podx"].iter().all(|name| patterns.matches(name)));
        assert!(["eth0", "pod", "podxy", "lo", "xveth"].iter().all(|name| !patterns.matches(name)));
        assert_eq!(patterns.to_string(), "veth*,cali*,pod?");
    }

    #[test]
    fn the_nodes_own_interfaces_do_not_face_pods() {
        let Ok(patterns) = Patterns::DEFAULT.parse::<Patterns>();
        for name in ["lo", "eth0", "ens5", "enp1s0", "cni0", "flannel.1", "docker0", "cilium_host", "tunl0"] {
            assert!(!patterns.matches(name), "{name}");
        }
    }

    #[test]
    fn an_interface_is_attached_once() {
        let mut facing = facing(&[]);
        let news = News::Changed(link(3, "veth3"));
        assert_eq!(facing.handle(news.clone()), [Action::Attach(link(3, "veth3"))]);
        assert_eq!(facing.handle(news.clone()), [], "its state has changed, up or down");
        assert_eq!(facing.handle(News::Gone(3)), [Action::Detach(3)]);
        assert_eq!(facing.handle(News::Gone(4)), []);
        facing.handle(news.clone());
        facing.failed(3);
        assert_eq!(facing.handle(news).len(), 1);
    }

    #[test]
    fn a_name_decides_at_any_time() {
        let mut facing = facing(&[]);
        assert_eq!(facing.handle(News::Changed(link(3, "tmp3"))), []);
        assert_eq!(facing.handle(News::Changed(link(3, "cali3"))), [Action::Attach(link(3, "cali3"))]);
        assert_eq!(facing.handle(News::Changed(link(3, "veth3"))), []);
        assert_eq!(facing.handle(News::Changed(link(3, "eth1"))), [Action::Detach(3)]);
    }

    #[test]
    fn other_than_ethernet_is_left_alone() {
        let mut facing = facing(&[]);
        let tunnel = Link { ethernet: false, ..link(3, "veth3") };
        assert_eq!(facing.handle(News::Changed(tunnel)), []);
    }

    #[test]
    fn a_list_tells_what_was_missed_and_what_was_left() {
        let mut facing = facing(&[1, 2, 3]);
        let all = News::All(vec![link(2, "eth0"), link(3, "veth3"), link(4, "veth4")]);
        assert_eq!(
            facing.handle(all.clone()),
            [
                Action::Detach(1),
                Action::Detach(2),
                Action::Attach(link(3, "veth3")),
                Action::Attach(link(4, "veth4")),
            ],
            "of those left behind, one is gone, one has another name, and one is taken over"
        );
        assert_eq!(facing.handle(all), []);
        assert_eq!(facing.count(), 2);
    }
}
