//! What the cluster wants: objects as they come in, an index of them, and what they amount to.
//!
//! The edges ([`watch`], [`files`]) turn what they read into [`Event`]s at once; everything behind them is
//! pure.

pub mod files;
pub mod health_check;
pub mod index;
pub mod manifests;
pub mod model;
pub mod node;
pub mod object;
pub mod pod;
pub(crate) mod store;
pub mod topology;
pub mod watch;

use std::time::Instant;

use tokio::sync::mpsc;

use object::{Key, Kind, Object};

/// What happened to the objects of a source.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// All objects of a kind follow, and then [`Listed`](Self::Listed).
    Listing(Kind),
    /// An object is there, new or changed.
    Apply(Object),
    /// An object is gone, or is none of podnet's business any more.
    Delete(Kind, Key),
    /// All objects of a kind have been named: what has not been is gone.
    Listed(Kind),
    /// The source does not give objects of a kind, for now at least: podnet may have to do without them.
    Refused(Kind),
    /// Whether the source is away, so that what it has said last may hold no more.
    Away(bool),
}

/// How many events may wait for the agent before a source has to.
const QUEUE: usize = 4096;

/// The end of the queue that sources put events into.
#[derive(Clone, Debug)]
pub struct Feed(mpsc::Sender<(Instant, Event)>);

/// The end of the queue that the agent takes events from, each with the moment it was read.
pub type Events = mpsc::Receiver<(Instant, Event)>;

/// A queue of events.
pub fn feed() -> (Feed, Events) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    (Feed(sender), receiver)
}

impl Feed {
    /// Puts in an event that was read just now.
    ///
    /// # Errors
    /// [`Closed`] when nobody takes events any more: the source should end.
    pub async fn send(&self, event: Event) -> Result<(), Closed> {
        self.0.send((Instant::now(), event)).await.map_err(|_| Closed)
    }
}

/// The agent takes no more events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;
