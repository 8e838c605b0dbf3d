//! The interfaces that lead out of this node: those of its default routes, and news of them from netlink.

use std::collections::BTreeSet;
use std::future::pending;
use std::io;

use futures::TryStreamExt;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};

use crate::netlink::Netlink;

/// Netlink's news of the default routes of this network namespace.
pub(crate) struct DefaultRoutes {
    netlink: Netlink,
    interfaces: BTreeSet<u32>,
    /// What was told last.
    told: Option<BTreeSet<u32>>,
}

impl DefaultRoutes {
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];

    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub(crate) fn open() -> io::Result<Self> {
        let netlink = Netlink::open(Self::GROUPS)?;
        Ok(Self { netlink, interfaces: BTreeSet::new(), told: None })
    }

    /// The indexes of all interfaces that a default route of the main table leaves by, now and whenever that changes.
    /// A call that is given up loses nothing.
    pub(crate) async fn next(&mut self) -> BTreeSet<u32> {
        loop {
            self.netlink.ready().await;
            if self.netlink.is_stale() {
                let list = self.list().await;
                let Some(interfaces) = self.netlink.listed(list, "routes") else { continue };
                self.interfaces = interfaces;
            }
            if self.told.as_ref() != Some(&self.interfaces) {
                self.told = Some(self.interfaces.clone());
                return self.interfaces.clone();
            }
            // Which of several routes is gone is not told by the interface alone.
            if let Some(RouteNetlinkMessage::NewRoute(message) | RouteNetlinkMessage::DelRoute(message)) =
                self.netlink.next().await
                && is_default(&message)
            {
                self.netlink.miss();
            }
        }
    }

    async fn list(&self) -> Result<BTreeSet<u32>, rtnetlink::Error> {
        let mut interfaces = BTreeSet::new();
        let (v4, v6) = (
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        );
        for family in [v4, v6] {
            let mut routes = Box::pin(self.netlink.handle().route().get(family).execute());
            while let Some(route) = routes.try_next().await? {
                if is_default(&route) {
                    interfaces.extend(leaves_by(&route));
                }
            }
        }
        Ok(interfaces)
    }
}

/// The next news of `routes`; none ever, if nobody listens to them.
pub(crate) async fn next_of(routes: &mut Option<DefaultRoutes>) -> BTreeSet<u32> {
    match routes {
        Some(routes) => routes.next().await,
        None => pending().await,
    }
}

/// Whether a route is one to everywhere, in the table that all packets meet.
fn is_default(route: &RouteMessage) -> bool {
    let table = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    let table = table.unwrap_or(route.header.table.into());
    let main = table == u32::from(RouteHeader::RT_TABLE_MAIN);
    main && route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
}

/// The interfaces that a route leaves by.
fn leaves_by(route: &RouteMessage) -> impl Iterator<Item = u32> {
    route.attributes.iter().flat_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_route::route::RouteNextHop;

    use super::*;

    fn route(attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.table = RouteHeader::RT_TABLE_MAIN;
        route.header.kind = RouteType::Unicast;
        route.attributes = attributes;
        route
    }

    #[test]
    fn a_default_route_may_leave_by_several_interfaces() {
        let hop = |index| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop
        };
        let several = route(vec![RouteAttribute::MultiPath(vec![hop(3), hop(4)])]);
        assert!(is_default(&several));
        assert_eq!(leaves_by(&several).collect::<Vec<_>>(), [3, 4]);
        assert_eq!(leaves_by(&route(vec![RouteAttribute::Oif(2)])).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn other_routes_are_none() {
        let mut networks = route(vec![RouteAttribute::Oif(2)]);
        networks.header.destination_prefix_length = 8;
        let mut unreachable = route(Vec::new());
        unreachable.header.kind = RouteType::Unreachable;
        let other_table = route(vec![RouteAttribute::Oif(2), RouteAttribute::Table(1000)]);
        assert!([networks, unreachable, other_table].iter().all(|route| !is_default(route)));
    }
}
