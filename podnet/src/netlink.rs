//! News from netlink's route family, by a socket that is replaced when it does not work.

use std::fmt;
use std::io;
use std::time::Duration;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// How long to wait before netlink is tried again.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);

/// A socket that hears of all that happens in some groups.
pub(crate) struct Netlink {
    groups: &'static [MulticastGroup],
    handle: Handle,
    messages: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// Whether news may have been missed, so that all has to be listed.
    stale: bool,
    /// When another socket is to be opened, for this one does not work.
    retry_at: Option<Instant>,
}

impl Netlink {
    /// Begins to listen to `groups`.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub(crate) fn open(groups: &'static [MulticastGroup]) -> io::Result<Self> {
        let (connection, handle, messages) = new_multicast_connection(groups)?;
        tokio::spawn(connection);
        Ok(Self { groups, handle, messages, stale: true, retry_at: None })
    }

    /// A socket that nobody serves.
    #[cfg(test)]
    pub(crate) fn dead(groups: &'static [MulticastGroup], stale: bool) -> Self {
        let (connection, handle, messages) = new_multicast_connection(groups).unwrap();
        drop(connection);
        Self { groups, handle, messages, stale, retry_at: None }
    }

    /// By which questions are asked.
    pub(crate) const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Waits until there is a socket to be used: another one, if this one does not work. A call that is given
    /// up loses nothing.
    pub(crate) async fn ready(&mut self) {
        // The moment stays when the call is given up, else one that never waits for long would never get
        // there.
        while let Some(moment) = self.retry_at {
            sleep_until(moment).await;
            match Self::open(self.groups) {
                Ok(again) => *self = again,
                Err(error) => self.pause(error, "netlink cannot be listened to; podnet tries again"),
            }
        }
    }

    /// Whether news may have been missed, so that all has to be listed.
    pub(crate) const fn is_stale(&self) -> bool {
        self.stale
    }

    /// Notes that all has to be listed anew.
    pub(crate) const fn miss(&mut self) {
        self.stale = true;
    }

    /// Takes note of a list of all `things`; `None` if it has failed.
    pub(crate) fn listed<T>(&mut self, list: Result<T, rtnetlink::Error>, things: &str) -> Option<T> {
        match list {
            Ok(list) => {
                self.stale = false;
                Some(list)
            }
            Err(error) => {
                self.pause(error, &format!("the {things} cannot be listed; podnet tries again"));
                None
            }
        }
    }

    /// The next message; `None` for one that is none, or none any more. A call that is given up loses nothing.
    pub(crate) async fn next(&mut self) -> Option<RouteNetlinkMessage> {
        match self.messages.next().await.map(|(message, _)| message.payload) {
            Some(NetlinkPayload::InnerMessage(message)) => return Some(message),
            Some(NetlinkPayload::Overrun(_)) => self.stale = true,
            Some(_) => {}
            None => {
                warn!("netlink tells nothing any more; podnet opens another socket");
                self.retry_at = Some(Instant::now() + PAUSE);
            }
        }
        None
    }

    fn pause(&mut self, error: impl fmt::Display, what: &str) {
        warn!(%error, "{what}");
        self.retry_at = Some(Instant::now() + PAUSE);
    }
}
