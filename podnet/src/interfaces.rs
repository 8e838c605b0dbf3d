//! The interfaces that face pods and other machines: which they are, as they come and go.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::str::FromStr;

use futures::TryStreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::link::{
    InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use tokio::runtime::Builder;

use crate::kernel::Side;
use crate::netlink::Netlink;

/// Names of interfaces, as globs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patterns(Vec<String>);

impl Patterns {
    /// What the common network plugins call the host's end of a pod's link: `veth*` the bridge and ptp
    /// plugins (and so flannel, kindnet, Weave Net, kube-router, k3s), `cali*` Calico and Canal, `lxc*`
    /// Cilium, `eni*` the AWS VPC CNI, `azv*` Azure CNI, `gke*` GKE.
    ///
    /// OVN-Kubernetes and Antrea name links after the pod or a hash of it, and switch them in Open vSwitch:
    /// such a cluster names its own patterns.
    pub const PODS: &str = "veth*,cali*,lxc*,eni*,azv*,gke*";

    /// All that do not face pods: uplinks, bonds of them, and tunnels between nodes.
    pub const NODES: &str = "*";

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

/// Which interfaces face pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodInterfaces {
    /// Those with these names.
    Named(Patterns),
    /// Those whose names begin so.
    Prefixed(String),
    /// The ports of the bridge of this name.
    PortsOf(String),
}

impl Default for PodInterfaces {
    fn default() -> Self {
        let Ok(usual) = Patterns::PODS.parse();
        Self::Named(usual)
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What its frames begin with.
    pub header: Header,
    /// Whether it is up.
    pub up: bool,
    /// Whether packets pass another interface too that podnet is at: it is a bridge, whose ports are, or a
    /// member of a bond.
    pub indirect: bool,
    /// The index of the interface that it is a port or a member of.
    pub master: Option<u32>,
    /// Whether it is one end of a virtual cable.
    pub veth: bool,
    /// Whether it is a VLAN of another interface.
    pub vlan: bool,
    /// The id of the XDP program that it has.
    pub xdp: Option<u32>,
}

impl Link {
    /// Whether packets may pass here whose frames podnet cannot read.
    fn is_unreadable(&self) -> bool {
        self.header == Header::Other && self.up
    }
}

/// The names of the interfaces that are up and whose frames podnet cannot read.
///
/// # Errors
/// When netlink does not tell.
pub fn unreadable() -> io::Result<Vec<String>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let links = runtime.block_on(async { Interfaces::open()?.list().await.map_err(io::Error::other) })?;
    Ok(links.into_iter().filter(Link::is_unreadable).map(|link| link.name).collect())
}

/// What an interface's frames begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Ethernet's.
    Ethernet,
    /// It is the loopback interface.
    Loopback,
    /// Another one or none: that of a tunnel, such as WireGuard or IPIP.
    Other,
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
    /// It faces pods or other machines.
    Attach(Side, Link),
    /// It faces neither, or is gone.
    Detach(u32),
    /// It would face one of them, but podnet cannot read its frames: that is to be told.
    Lament(Link),
}

/// Which interfaces face pods and other machines, by what netlink has told.
#[derive(Debug)]
pub struct Facing {
    pods: PodInterfaces,
    nodes: Patterns,
    /// The index of the bridge that pods are at, if that is what tells them and it exists.
    bridge: Option<u32>,
    links: BTreeMap<u32, Attachment>,
    /// The interfaces whose frames podnet cannot read, once that has been told.
    lamented: BTreeSet<u32>,
}

/// Which of the interfaces that face other machines are network cards, at which packets may be met.
#[derive(Debug, Default)]
pub struct Cards {
    /// Those with these names; else those that a default route leaves by, or has: to take a program away may reset a
    /// card, and a route that comes and goes is no reason for that.
    named: Option<Patterns>,
    uplinks: BTreeSet<u32>,
    /// All that face other machines.
    known: BTreeMap<u32, Link>,
}

impl Cards {
    /// Those with these names, or that a default route leaves by.
    pub fn new(named: Option<Patterns>) -> Self {
        Self { named, ..Self::default() }
    }

    /// Takes note of an interface, which may face other machines; whether it is a card.
    ///
    /// A VLAN is none: the card below it meets its packets, if that is one.
    pub fn meet(&mut self, side: Side, link: &Link) -> bool {
        if side != Side::Net {
            self.known.remove(&link.index);
            return false;
        }
        self.known.insert(link.index, link.clone());
        self.is_card(link)
    }

    /// Takes note of an interface that is gone.
    pub fn forget(&mut self, index: u32) {
        self.known.remove(&index);
        self.uplinks.remove(&index);
    }

    /// Takes note of which interfaces a default route leaves by; those that are cards from now on.
    pub fn lead_out(&mut self, uplinks: BTreeSet<u32>) -> Vec<Link> {
        let mut others: Vec<Link> = self.known.values().filter(|link| !self.is_card(link)).cloned().collect();
        self.uplinks.extend(uplinks);
        others.retain(|link| self.is_card(link));
        others
    }

    fn is_card(&self, link: &Link) -> bool {
        !link.vlan
            && match &self.named {
                Some(patterns) => patterns.matches(&link.name),
                None => self.uplinks.contains(&link.index),
            }
    }
}

/// How far an interface is.
#[derive(Debug)]
enum Attachment {
    /// An earlier agent has left it attached.
    Left,
    /// It is attached, by this name.
    Done(Side, String),
    /// It could not be attached.
    Failed(Side, Link),
}

impl Facing {
    /// Interfaces that face pods by `pods`, and others that face other machines by `nodes`; `attached` are
    /// those that an earlier agent has left attached.
    pub fn new(pods: PodInterfaces, nodes: Patterns, attached: impl IntoIterator<Item = u32>) -> Self {
        let links = attached.into_iter().map(|index| (index, Attachment::Left)).collect();
        Self { pods, nodes, bridge: None, links, lamented: BTreeSet::new() }
    }

    /// Whether an interface faces pods.
    fn faces_pods(&self, link: &Link) -> bool {
        match &self.pods {
            PodInterfaces::Named(patterns) => patterns.matches(&link.name),
            PodInterfaces::Prefixed(prefix) => link.name.starts_with(prefix),
            PodInterfaces::PortsOf(_) => self.bridge.is_some() && link.master == self.bridge,
        }
    }

    /// Takes note of the bridge that pods are at: it gets its ports after it is there itself.
    fn meet(&mut self, link: &Link) {
        if matches!(&self.pods, PodInterfaces::PortsOf(name) if *name == link.name) {
            self.bridge = Some(link.index);
        }
    }

    /// What an interface faces, if podnet has to do with it.
    fn side(&self, link: &Link) -> Option<Side> {
        if link.header != Header::Ethernet {
            None
        } else if self.faces_pods(link) {
            Some(Side::Pod)
        } else {
            (!link.indirect && self.nodes.matches(&link.name)).then_some(Side::Net)
        }
    }

    /// What is to be done about some news.
    pub fn handle(&mut self, news: News) -> Vec<Action> {
        match news {
            News::All(links) => {
                self.bridge = None;
                links.iter().for_each(|link| self.meet(link));
                let gone: Vec<u32> = self
                    .links
                    .keys()
                    .filter(|index| links.iter().all(|link| link.index != **index))
                    .copied()
                    .collect();
                let gone = gone.into_iter().filter_map(|index| self.gone(index)).collect::<Vec<_>>();
                gone.into_iter().chain(links.into_iter().filter_map(|link| self.changed(link))).collect()
            }
            News::Changed(link) => {
                self.meet(&link);
                self.changed(link).into_iter().collect()
            }
            News::Gone(index) => self.gone(index).into_iter().collect(),
        }
    }

    /// Notes that an interface could not be attached to; whether that is new. It is due again with its next
    /// change, or [`again`](Self::again).
    pub fn failed(&mut self, side: Side, link: Link) -> bool {
        let before = self.links.insert(link.index, Attachment::Failed(side, link));
        !matches!(before, Some(Attachment::Failed(..)))
    }

    /// Notes that an interface is attached to.
    pub fn attached(&mut self, side: Side, link: &Link) {
        self.links.insert(link.index, Attachment::Done(side, link.name.clone()));
    }

    /// Whether some interfaces could not be attached to.
    pub fn is_behind(&self) -> bool {
        self.failures().next().is_some()
    }

    /// What has failed and is to be tried again.
    pub fn again(&self) -> Vec<Action> {
        self.failures().map(|(side, link)| Action::Attach(side, link.clone())).collect()
    }

    /// How many interfaces are attached to that face `side`.
    pub fn count(&self, side: Side) -> usize {
        let done = |attachment: &&Attachment| matches!(attachment, Attachment::Done(at, _) if *at == side);
        self.links.values().filter(done).count()
    }

    fn failures(&self) -> impl Iterator<Item = (Side, &Link)> {
        self.links.values().filter_map(|attachment| match attachment {
            Attachment::Failed(side, link) => Some((*side, link)),
            Attachment::Left | Attachment::Done(..) => None,
        })
    }

    fn changed(&mut self, link: Link) -> Option<Action> {
        let Some(side) = self.side(&link) else {
            let wanted = self.faces_pods(&link) || self.nodes.matches(&link.name);
            return if wanted && link.is_unreadable() && self.lamented.insert(link.index) {
                Some(Action::Lament(link))
            } else {
                self.detach(link.index)
            };
        };
        match self.links.get_mut(&link.index) {
            // By another name an uplink may be a network card.
            Some(Attachment::Done(at, name)) if *at == side && (side == Side::Pod || *name == link.name) => {
                return None;
            }
            Some(Attachment::Failed(at, failed)) => (*at, *failed) = (side, link.clone()),
            Some(Attachment::Left | Attachment::Done(..)) | None => self.attached(side, &link),
        }
        Some(Action::Attach(side, link))
    }

    fn gone(&mut self, index: u32) -> Option<Action> {
        self.lamented.remove(&index);
        self.detach(index)
    }

    fn detach(&mut self, index: u32) -> Option<Action> {
        self.links.remove(&index).map(|_| Action::Detach(index))
    }
}

/// Netlink's news of the interfaces of this network namespace.
pub struct Interfaces {
    netlink: Netlink,
}

impl Interfaces {
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Link];

    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: Netlink::open(Self::GROUPS)? })
    }

    /// The next news: all interfaces first, and again whenever some may have been missed. A call that is
    /// given up loses nothing.
    pub async fn next(&mut self) -> News {
        loop {
            self.netlink.ready().await;
            if self.netlink.is_stale() {
                let list = self.list().await;
                match self.netlink.listed(list, "interfaces") {
                    Some(links) => return News::All(links),
                    None => continue,
                }
            }
            match self.netlink.next().await {
                Some(RouteNetlinkMessage::NewLink(message)) => {
                    if let Some(link) = link(&message) {
                        return News::Changed(link);
                    }
                }
                Some(RouteNetlinkMessage::DelLink(message)) if !is_of_bridge(&message) => {
                    return News::Gone(message.header.index);
                }
                _ => {}
            }
        }
    }

    async fn list(&self) -> Result<Vec<Link>, rtnetlink::Error> {
        let messages = self.netlink.handle().link().get().execute();
        messages.try_filter_map(|message| async move { Ok(link(&message)) }).try_collect().await
    }
}

/// Whether a message tells of an interface as the port of a bridge: with little of what an interface is, and that it
/// is gone when it has left the bridge.
fn is_of_bridge(message: &LinkMessage) -> bool {
    message.header.interface_family == AddressFamily::Bridge
}

fn link(message: &LinkMessage) -> Option<Link> {
    if is_of_bridge(message) {
        return None;
    }
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let master = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    let header = match message.header.link_layer_type {
        LinkLayerType::Ether => Header::Ethernet,
        LinkLayerType::Loopback => Header::Loopback,
        _ => Header::Other,
    };
    let up = message.header.flags.contains(LinkFlags::Up);
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let infos = || infos.clone().flatten();
    let indirect = infos().any(|info| {
        matches!(
            info,
            LinkInfo::Kind(InfoKind::Bridge | InfoKind::Dummy | InfoKind::Ifb)
                | LinkInfo::PortKind(InfoPortKind::Bond)
        )
    });
    let is = |kind: &InfoKind| infos().any(|info| matches!(info, LinkInfo::Kind(of) if of == kind));
    let (veth, vlan) = (is(&InfoKind::Veth), is(&InfoKind::Vlan));
    let xdp = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Xdp(told) => told.iter().find_map(|told| match told {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        }),
        _ => None,
    });
    Some(Link { index: message.header.index, name, header, up, indirect, master, veth, vlan, xdp })
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::netlink::PAUSE;

    fn link(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.to_owned(),
            header: Header::Ethernet,
            up: true,
            indirect: false,
            master: None,
            veth: false,
            vlan: false,
            xdp: None,
        }
    }

    #[test]
    fn cards_follow_names_or_default_routes() {
        let (uplink, other) = (link(1, "eth0"), link(2, "eth1"));
        let mut cards = Cards::new(None);
        assert!(!cards.meet(Side::Net, &uplink) && !cards.meet(Side::Pod, &other));
        assert_eq!(cards.lead_out([1, 2].into()), std::slice::from_ref(&uplink), "the other faces pods");
        assert!(cards.meet(Side::Net, &uplink));
        assert_eq!((cards.lead_out([1].into()), cards.lead_out([].into())), (vec![], vec![]), "it stays one");
        assert!(cards.meet(Side::Net, &uplink));
        cards.forget(1);
        assert_eq!(cards.lead_out([].into()), [], "it is gone");
        assert!(!cards.meet(Side::Net, &uplink), "another one with its index");
        assert_eq!(cards.lead_out([1].into()), std::slice::from_ref(&uplink));
        let vlan = Link { vlan: true, ..uplink.clone() };
        assert!(!cards.meet(Side::Net, &vlan) && cards.meet(Side::Net, &uplink));

        let mut named = Cards::new(Some("eth1".parse().unwrap()));
        assert_eq!(named.lead_out([1].into()), []);
        assert!(!named.meet(Side::Net, &uplink) && named.meet(Side::Net, &other));
    }

    fn facing(attached: &[u32]) -> Facing {
        of_pods(PodInterfaces::default(), attached)
    }

    fn of_pods(pods: PodInterfaces, attached: &[u32]) -> Facing {
        let Ok(nodes) = "eth*,flannel*".parse();
        Facing::new(pods, nodes, attached.iter().copied())
    }

    #[test]
    fn what_bridges_say_of_their_ports_is_no_news_of_interfaces() {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.link_layer_type = LinkLayerType::Ether;
        message.attributes.push(LinkAttribute::IfName("cni0".to_owned()));
        assert_eq!(super::link(&message).map(|link| link.index), Some(7));
        message.header.interface_family = AddressFamily::Bridge;
        assert!(super::link(&message).is_none() && is_of_bridge(&message));
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
        let Ok(patterns) = Patterns::PODS.parse::<Patterns>();
        for name in ["lo", "eth0", "ens5", "enp1s0", "cni0", "flannel.1", "docker0", "cilium_host", "tunl0"] {
            assert!(!patterns.matches(name), "{name}");
        }
    }

    #[test]
    fn names_of_pods_interfaces_begin_alike() {
        let mut facing = of_pods(PodInterfaces::Prefixed("eth1".to_owned()), &[]);
        let side = |link: Link| [Action::Attach(Side::Pod, link)];
        assert_eq!(facing.handle(News::Changed(link(3, "eth12"))), side(link(3, "eth12")));
        assert_eq!(facing.handle(News::Changed(link(4, "veth1"))), []);
        let uplink = link(5, "eth0");
        assert_eq!(facing.handle(News::Changed(uplink.clone())), [Action::Attach(Side::Net, uplink)]);
    }

    #[test]
    fn pods_are_at_the_ports_of_their_bridge() {
        let mut facing = of_pods(PodInterfaces::PortsOf("cni0".to_owned()), &[]);
        let port = |index, master| Link { master: Some(master), ..link(index, &format!("veth{index}")) };
        let bridge = |index| Link { indirect: true, ..link(index, "cni0") };
        // A port may have been there before its bridge.
        let all = News::All(vec![port(3, 7), link(4, "veth4"), port(5, 6), bridge(7)]);
        assert_eq!(facing.handle(all), [Action::Attach(Side::Pod, port(3, 7))]);
        assert_eq!(facing.handle(News::Changed(port(4, 7))), [Action::Attach(Side::Pod, port(4, 7))]);
        assert_eq!(facing.handle(News::Changed(link(3, "veth3"))), [Action::Detach(3)], "it has left");
        assert_eq!(facing.handle(News::Gone(7)), []);
        assert_eq!(facing.handle(News::Changed(link(4, "veth4"))), [Action::Detach(4)]);
        assert_eq!(facing.handle(News::Changed(bridge(9))), []);
        assert_eq!(facing.handle(News::Changed(port(4, 9))), [Action::Attach(Side::Pod, port(4, 9))]);
    }

    #[test]
    fn an_interface_is_attached_once() {
        let mut facing = facing(&[]);
        let news = News::Changed(link(3, "veth3"));
        assert_eq!(facing.handle(news.clone()), [Action::Attach(Side::Pod, link(3, "veth3"))]);
        assert_eq!(facing.handle(news.clone()), [], "its state has changed, up or down");
        assert_eq!(facing.handle(News::Gone(3)), [Action::Detach(3)]);
        assert_eq!(facing.handle(News::Gone(4)), []);
    }

    #[test]
    fn what_fails_is_tried_again_and_told_of_once() {
        let mut facing = facing(&[]);
        let attach = [Action::Attach(Side::Pod, link(3, "veth3"))];
        assert_eq!(facing.handle(News::Changed(link(3, "veth3"))), attach);
        assert!(facing.failed(Side::Pod, link(3, "veth3")));
        assert_eq!((facing.count(Side::Pod), facing.is_behind()), (0, true));
        assert_eq!(facing.again(), attach);
        assert!(!facing.failed(Side::Pod, link(3, "veth3")));
        assert_eq!(facing.handle(News::Changed(link(3, "veth3"))), attach, "it may work now");
        assert_eq!(facing.again(), attach, "nobody has said yet that it does");
        facing.attached(Side::Pod, &link(3, "veth3"));
        assert_eq!((facing.count(Side::Pod), facing.is_behind(), facing.again().len()), (1, false, 0));
        assert!(facing.failed(Side::Pod, link(3, "veth3")), "that is another failure");
    }

    #[test]
    fn what_has_failed_and_is_gone_is_forgotten() {
        let mut facing = facing(&[]);
        for (index, gone) in
            [(3, News::Gone(3)), (4, News::Changed(link(4, "tap4"))), (5, News::All(Vec::new()))]
        {
            let name = format!("veth{index}");
            facing.handle(News::Changed(link(index, &name)));
            facing.failed(Side::Pod, link(index, &name));
            // Half of it may be attached.
            assert_eq!(facing.handle(gone), [Action::Detach(index)]);
            assert!(!facing.is_behind());
        }
    }

    /// News by a socket that nobody serves.
    fn dead(stale: bool) -> Interfaces {
        Interfaces { netlink: Netlink::dead(Interfaces::GROUPS, stale) }
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced() {
        let mut interfaces = dead(true);
        let news = timeout(PAUSE * 5, interfaces.next()).await.unwrap();
        assert!(matches!(&news, News::All(links) if links.iter().any(|link| link.name == "lo")), "{news:?}");
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_even_if_nobody_waits_for_long() {
        let mut interfaces = dead(false);
        for _ in 0..100 {
            if let Ok(news) = timeout(PAUSE / 20, interfaces.next()).await {
                return assert!(matches!(news, News::All(_)), "{news:?}");
            }
        }
        panic!("no news");
    }

    #[test]
    fn a_name_decides_at_any_time() {
        let mut facing = facing(&[]);
        assert_eq!(facing.handle(News::Changed(link(3, "tmp3"))), []);
        assert_eq!(
            facing.handle(News::Changed(link(3, "cali3"))),
            [Action::Attach(Side::Pod, link(3, "cali3"))]
        );
        assert_eq!(facing.handle(News::Changed(link(3, "veth3"))), []);
        assert_eq!(
            facing.handle(News::Changed(link(3, "eth1"))),
            [Action::Attach(Side::Net, link(3, "eth1"))],
            "it faces other machines now"
        );
        assert_eq!(facing.handle(News::Changed(link(3, "tap1"))), [Action::Detach(3)]);
    }

    #[test]
    fn bridges_and_members_of_bonds_are_passed_at_another_interface() {
        let mut facing = facing(&[]);
        let bridge = Link { indirect: true, ..link(3, "eth3") };
        assert_eq!(facing.handle(News::Changed(bridge)), []);
        let veth = Link { indirect: true, ..link(4, "veth4") };
        assert_eq!(facing.handle(News::Changed(veth.clone())), [Action::Attach(Side::Pod, veth)]);
        assert_eq!((facing.count(Side::Pod), facing.count(Side::Net)), (1, 0));
    }

    #[test]
    fn other_than_ethernet_is_left_alone() {
        let mut facing = facing(&[]);
        let loopback = Link { header: Header::Loopback, ..link(1, "eth1") };
        assert_eq!(facing.handle(News::Changed(loopback)), []);
        let tunnel = Link { header: Header::Other, ..link(3, "flannel-wg") };
        assert_eq!(facing.handle(News::Changed(Link { up: false, ..tunnel.clone() })), [], "it is idle");
        assert_eq!(facing.handle(News::Changed(tunnel.clone())), [Action::Lament(tunnel.clone())]);
        assert_eq!(facing.handle(News::Changed(tunnel.clone())), [], "that has been told");
        assert_eq!(facing.handle(News::Gone(3)), []);
        assert_eq!(facing.handle(News::Changed(tunnel.clone())), [Action::Lament(tunnel)], "it is another");
        let other = Link { header: Header::Other, ..link(4, "tap4") };
        assert_eq!(facing.handle(News::Changed(other)), [], "nobody wants it");
        assert_eq!((facing.count(Side::Net), facing.is_behind()), (0, false));
    }

    #[test]
    fn a_list_tells_what_was_missed_and_what_was_left() {
        let mut facing = facing(&[1, 2, 3]);
        let all = News::All(vec![link(2, "tap0"), link(3, "veth3"), link(4, "veth4")]);
        assert_eq!(
            facing.handle(all.clone()),
            [
                Action::Detach(1),
                Action::Detach(2),
                Action::Attach(Side::Pod, link(3, "veth3")),
                Action::Attach(Side::Pod, link(4, "veth4")),
            ],
            "of those left behind, one is gone, one has another name, and one is taken over"
        );
        assert_eq!(facing.handle(all), []);
        assert_eq!(facing.count(Side::Pod), 2);
    }
}
