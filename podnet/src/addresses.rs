//! The addresses of this node's interfaces: which there are, and news of them from netlink.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::interfaces::Messages;

/// How long to wait before netlink is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// An address of an interface: the same one may be on several.
type Assigned = (u32, IpAddr);

/// Netlink's news of the addresses of this network namespace.
pub struct Addresses {
    handle: Handle,
    messages: Messages,
    assigned: BTreeSet<Assigned>,
    /// What was told last.
    told: Option<BTreeSet<IpAddr>>,
    /// Whether news may have been missed, so that all has to be listed.
    stale: bool,
    /// When another socket is to be opened, for this one does not work.
    retry_at: Option<Instant>,
}

impl Addresses {
    /// Begins to listen.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn open() -> io::Result<Self> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, messages) = new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        Ok(Self { handle, messages, assigned: BTreeSet::new(), told: None, stale: true, retry_at: None })
    }

    /// All addresses that there are, now and whenever that changes. A call that is given up loses nothing.
    pub async fn next(&mut self) -> BTreeSet<IpAddr> {
        loop {
            if let Some(moment) = self.retry_at {
                sleep_until(moment).await;
                match Self::open() {
                    Ok(again) => *self = Self { told: self.told.take(), ..again },
                    Err(error) => {
                        warn!(%error, "netlink cannot be listened to; podnet tries again");
                        self.retry_at = Some(Instant::now() + PAUSE);
                        continue;
                    }
                }
            }
            if self.stale {
                match self.list().await {
                    Ok(assigned) => {
                        self.assigned = assigned;
                        self.stale = false;
                    }
                    Err(error) => {
                        warn!(%error, "the addresses cannot be listed; podnet tries again");
                        self.retry_at = Some(Instant::now() + PAUSE);
                        continue;
                    }
                }
            }
            let now: BTreeSet<IpAddr> = self.assigned.iter().map(|(_, ip)| *ip).collect();
            if self.told.as_ref() != Some(&now) {
                self.told = Some(now.clone());
                return now;
            }
            match self.messages.next().await.map(|(message, _)| message.payload) {
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(message))) => {
                    self.assigned.extend(assigned(&message));
                }
                Some(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(message))) => {
                    if let Some(assigned) = assigned(&message) {
                        self.assigned.remove(&assigned);
                    }
                }
                Some(NetlinkPayload::Overrun(_)) => self.stale = true,
                Some(_) => {}
                None => {
                    warn!("netlink tells nothing any more; podnet opens another socket");
                    self.retry_at = Some(Instant::now() + PAUSE);
                }
            }
        }
    }

    async fn list(&self) -> Result<BTreeSet<Assigned>, rtnetlink::Error> {
        let messages = self.handle.address().get().execute();
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
        let mut addresses = Addresses::open().unwrap();
        let (connection, handle, messages) = new_multicast_connection(&[MulticastGroup::Ipv4Ifaddr]).unwrap();
        drop(connection);
        (addresses.handle, addresses.messages) = (handle, messages);
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
