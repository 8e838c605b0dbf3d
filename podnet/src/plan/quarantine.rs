//! Things that must not be used again at once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How long a place stays unused after it was freed. A packet that has read where to go is there within
/// microseconds; this is ample for a machine that is stalled or being debugged.
pub(super) const REST: Duration = Duration::from_secs(2);

/// Freed things, until nobody can be on the way to them.
///
/// Time begins to count for a thing with the first [`advance`](Self::advance) after it was put in: by then
/// the changes that freed it have been carried out.
#[derive(Debug)]
pub(super) struct Quarantine<T> {
    fresh: Vec<T>,
    resting: VecDeque<(Instant, Vec<T>)>,
}

impl<T> Default for Quarantine<T> {
    fn default() -> Self {
        Self { fresh: Vec::new(), resting: VecDeque::new() }
    }
}

impl<T> Quarantine<T> {
    pub(super) fn put(&mut self, thing: T) {
        self.fresh.push(thing);
    }

    /// Moves time on to `now`; what has rested for long enough, the longest first.
    pub(super) fn advance(&mut self, now: Instant) -> Vec<T> {
        let mut rested = Vec::new();
        while let Some((since, _)) = self.resting.front()
            && now.duration_since(*since) >= REST
        {
            rested.extend(self.resting.pop_front().into_iter().flat_map(|(_, things)| things));
        }
        if !self.fresh.is_empty() {
            self.resting.push_back((now, std::mem::take(&mut self.fresh)));
        }
        rested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_rests_from_the_first_advance_on() {
        let start = Instant::now();
        let mut quarantine = Quarantine::default();
        quarantine.put('a');
        assert!(quarantine.advance(start + REST).is_empty());
        quarantine.put('b');
        assert!(quarantine.advance(start + REST + REST / 2).is_empty());
        assert_eq!(quarantine.advance(start + REST * 2), ['a']);
        assert_eq!(quarantine.advance(start + REST * 3), ['b']);
    }
}
