//! The addresses of this node's interfaces: which there are, and news of them from netlink.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use futures::TryStreamExt;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use crate::netlink::Netlink;

/// An address of an interface: the same one may be on several.
type Assigned = (u32, IpAddr);

/// Netlink's news of the addresses of this network namespace.
pub struct Addresses {
    netlink: Netlink,
    assigned: BTreeSet<Assigned>,
    /// What was told last.
    told: Option<BTreeSet<IpAddr>>,
}

impl Addresses {
    const GROUPS: &[MulticastGroup] = &[MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> io::Result<Self> {
        Netlink::open(Self::GROUPS).map(Self::over)
    }

    fn over(netlink: Netlink) -> Self {
        Self { netlink, assigned: BTreeSet::new(), told: None }
    }

    /// All addresses that there are, now and whenever that changes. A call that is given up loses nothing.
    pub async fn next(&mut self) -> BTreeSet<IpAddr> {
        loop {
            self.netlink.ready().await;
            if self.netlink.is_stale() {
                let list = self.list().await;
                let Some(assigned) = self.netlink.listed(list, "addresses") else { continue };
                self.assigned = assigned;
            }
            let now: BTreeSet<IpAddr> = self.assigned.iter().map(|(_, ip)| *ip).collect();
            if self.told.as_ref() != Some(&now) {
                self.told = Some(now.clone());
                return now;
            }
            match self.netlink.next().await {
                Some(RouteNetlinkMessage::NewAddress(message)) => self.assigned.extend(assigned(&message)),
                Some(RouteNetlinkMessage::DelAddress(message)) => {
                    if let Some(assigned) = assigned(&message) {
                        self.assigned.remove(&assigned);
                    }
                }
                _ => {}
            }
        }
    }

    async fn list(&self) -> Result<BTreeSet<Assigned>, rtnetlink::Error> {
        let messages = self.netlink.handle().address().get().execute();
        messages.try_filter_map(|message| async move { Ok(assigned(&message)) }).try_collect().await
    }
}

/// The address of a message: the near end's, where a link has two.
fn assigned(message: &AddressMessage) -> Option<Assigned> {
    let find = |which: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(which);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let address = || {
        find(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    };
    Some((message.header.index, local.or_else(address)?))
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::netlink::PAUSE;

    #[tokio::test]
    async fn all_addresses_are_told_once() {
        let mut addresses = Addresses::open().unwrap();
        let all = timeout(PAUSE * 5, addresses.next()).await.unwrap();
        assert!(all.contains(&IpAddr::from([127, 0, 0, 1])), "{all:?}");
        // What others do on this machine may be news, but not the same again.
        if let Ok(again) = timeout(PAUSE / 10, addresses.next()).await {
            assert_ne!(again, all);
        }
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced() {
        let mut addresses = Addresses::over(Netlink::dead(Addresses::GROUPS, true));
        let all = timeout(PAUSE * 5, addresses.next()).await.unwrap();
        assert!(all.contains(&IpAddr::from([127, 0, 0, 1])), "{all:?}");
    }

    #[test]
    fn the_near_end_of_a_link_counts() {
        let mut message = AddressMessage::default();
        message.header.index = 3;
        let (near, far) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        message.attributes = vec![AddressAttribute::Address(far), AddressAttribute::Local(near)];
        assert_eq!(assigned(&message), Some((3, near)));
        message.attributes.pop();
        assert_eq!(assigned(&message), Some((3, far)));
    }
}
