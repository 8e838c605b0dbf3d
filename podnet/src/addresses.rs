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

/// Addresses that the kernel is to take for this node's, until it has.
#[derive(Debug, Default)]
pub struct Pending {
    addresses: BTreeSet<IpAddr>,
    failed: bool,
}

impl Pending {
    /// Has `addresses` admitted, in place of those before.
    pub fn set(&mut self, addresses: BTreeSet<IpAddr>) {
        self.addresses = addresses;
    }

    /// Whether some are to be tried again.
    pub fn is_behind(&self) -> bool {
        !self.addresses.is_empty()
    }

    /// Tries to have them admitted by `admit`; what there is to tell of it: the first failure, and that it is
    /// over.
    pub fn try_with<E>(
        &mut self,
        admit: impl FnOnce(&BTreeSet<IpAddr>) -> Result<(), E>,
    ) -> Option<Result<(), E>> {
        if !self.is_behind() {
            return None;
        }
        let admitted = admit(&self.addresses);
        if admitted.is_ok() {
            self.addresses.clear();
        }
        let failed_before = std::mem::replace(&mut self.failed, admitted.is_err());
        (failed_before != self.failed).then_some(admitted)
    }
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
    fn what_is_not_admitted_is_tried_again_and_told_of_once() {
        let mut pending = Pending::default();
        let all = |last| BTreeSet::from([IpAddr::from([10, 0, 0, last])]);
        let fails = |_: &BTreeSet<IpAddr>| Err("no memory");
        pending.set(all(1));
        assert_eq!(pending.try_with(fails), Some(Err("no memory")));
        assert_eq!((pending.try_with(fails), pending.is_behind()), (None, true));
        pending.set(all(2));
        let admitted = pending.try_with(|addresses| {
            assert_eq!(*addresses, all(2), "those before are this node's no more");
            Ok::<_, &str>(())
        });
        assert_eq!((admitted, pending.is_behind()), (Some(Ok(())), false));
        assert_eq!(pending.try_with(fails), None, "nothing is left to be tried");
        pending.set(all(3));
        assert_eq!(pending.try_with(|_| Ok::<_, &str>(())), None, "as it should be");
        pending.set(all(4));
        assert_eq!(pending.try_with(fails), Some(Err("no memory")), "that is another failure");
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
