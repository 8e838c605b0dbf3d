//! The door to state.

use crate::conntrack::{Flow, State, Time, Tuple};
use crate::filter::Place;
use crate::service::{Backend, BackendId, BackendRef, Frontend, FrontendKey};

/// Why a flow could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// There is an entry for this tuple.
    Exists,
    /// The table did not take it.
    Full,
}

/// Whether an entry may be replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overwrite {
    /// An existing entry stays, and is an error.
    No,
    /// The new entry takes its place.
    Yes,
}

/// What decisions need to know: read by everybody, written by user space.
pub trait Services {
    /// The frontend at this address.
    fn frontend(&self, key: &FrontendKey) -> Option<Frontend>;
    /// The backend that a slot names.
    fn slot(&self, index: u32) -> Option<BackendId>;
    /// A backend, by value: its place may be given to another at any time.
    fn backend(&self, id: BackendId) -> Option<Backend>;
    /// A random number.
    fn random(&mut self) -> u32;

    /// Whether the backend that a flow remembers is still the same and may serve it.
    #[inline(always)]
    fn serves(&self, remembered: BackendRef) -> bool {
        self.backend(remembered.id)
            .is_some_and(|backend| backend.serving() && backend.generation == remembered.generation)
    }
}

/// The tables of the packet path.
pub trait Tables: Services {
    /// The time, of a clock that does not jump.
    fn now(&self) -> Time;
    /// The entry for packets of `tuple`.
    fn flow(&self, tuple: &Tuple) -> Option<Flow>;
    /// A word of the [`filter`](crate::filter).
    fn filter_word(&self, index: u32) -> u64;

    /// Whether the filter has a member at `place`; if not, there is none.
    #[inline(always)]
    fn may_hold(&self, place: Place) -> bool {
        self.filter_word(place.index) & place.mask == place.mask
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// [`InsertError`]; nothing was written then.
    fn insert_flow(&mut self, tuple: &Tuple, flow: &Flow, overwrite: Overwrite) -> Result<(), InsertError>;
    /// Notes in the entry for `tuple` that a packet was seen at `now` and what `progress` it made;
    /// `false` if there is no such entry.
    fn touch_flow(&mut self, tuple: &Tuple, progress: State, now: Time) -> bool;
}
