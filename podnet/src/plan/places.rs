//! The backend table: which places are given out, and how often each has been.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Instant;

use podnet_common::service::{Backend, BackendId};

use super::adopt::is_present;
use super::quarantine::Quarantine;

#[derive(Debug)]
pub(super) struct Places {
    size: u32,
    /// By place; 0 for one that was never given out. Place 0 never is.
    generations: Vec<u32>,
    /// Places that were given out and came back, the longest ago first.
    free: VecDeque<BackendId>,
    quarantine: Quarantine<BackendId>,
}

impl Places {
    /// A table of `size` elements that holds `backends`.
    pub(super) fn adopt(size: u32, backends: &HashMap<BackendId, Backend>) -> Self {
        let last = backends.keys().map(|id| id.0).filter(|&id| id < size).max().unwrap_or(0);
        let mut places = Self {
            size,
            generations: vec![0; last as usize + 1],
            free: VecDeque::new(),
            quarantine: Quarantine::default(),
        };
        for id in (1..=last).map(BackendId) {
            let backend = backends.get(&id);
            places.generations[id.0 as usize] = backend.map_or(0, |backend| backend.generation);
            if !backend.is_some_and(is_present) {
                places.free.push_back(id);
            }
        }
        places
    }

    /// Lets those places rest that are free here and were not in `before`, the same table's past.
    pub(super) fn follow(&mut self, before: &Self) {
        let were_free: HashSet<BackendId> = before.free.iter().copied().collect();
        let known = before.generations.len();
        let (free, rest) = std::mem::take(&mut self.free)
            .into_iter()
            .partition(|id| were_free.contains(id) || id.0 as usize >= known);
        self.free = free;
        let rest: VecDeque<BackendId> = rest;
        rest.into_iter().for_each(|id| self.quarantine.put(id));
    }

    /// The places there are.
    pub(super) fn size(&self) -> u32 {
        self.size.saturating_sub(1)
    }

    /// How many places are free.
    pub(super) fn free(&self) -> u32 {
        let untouched = self.size as usize - self.generations.len().min(self.size as usize);
        u32::try_from(untouched + self.free.len()).unwrap_or(u32::MAX)
    }

    /// Gives a place out, and tells its new generation.
    pub(super) fn take(&mut self) -> Option<(BackendId, u32)> {
        let id = match self.free.pop_front() {
            Some(id) => id,
            None => {
                let id = u32::try_from(self.generations.len()).ok().filter(|&id| id < self.size)?;
                self.generations.push(0);
                BackendId(id)
            }
        };
        let generation = &mut self.generations[id.0 as usize];
        // 0 stands for "never given out".
        *generation = generation.checked_add(1).unwrap_or(1);
        Some((id, *generation))
    }

    /// The generation of a place that was given out.
    pub(super) fn generation(&self, id: BackendId) -> u32 {
        self.generations[id.0 as usize]
    }

    /// Frees a place that packets may still be reading.
    pub(super) fn retire(&mut self, id: BackendId) {
        self.quarantine.put(id);
    }

    /// Moves time on; whether that made room.
    pub(super) fn advance(&mut self, now: Instant) -> bool {
        let rested = self.quarantine.advance(now);
        let room = !rested.is_empty();
        self.free.extend(rested);
        room
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::service::{BackendFlags, ServiceId};
    use podnet_common::wire::Endpoint;

    use super::super::quarantine::REST;
    use super::*;

    fn backend(generation: u32) -> Backend {
        Backend::new(Endpoint::default(), ServiceId(1), generation, BackendFlags::PRESENT)
    }

    #[test]
    fn a_place_that_is_given_out_again_has_another_generation() {
        let start = Instant::now();
        let mut places = Places::adopt(3, &HashMap::new());
        assert_eq!((places.size(), places.free()), (2, 2));
        assert_eq!(places.take(), Some((BackendId(1), 1)), "place 0 is never given out");
        assert_eq!(places.take(), Some((BackendId(2), 1)));
        assert_eq!(places.take(), None);
        places.retire(BackendId(2));
        places.retire(BackendId(1));
        places.advance(start);
        assert_eq!(places.take(), None, "packets may be on their way to it");
        assert!(places.advance(start + REST));
        assert_eq!(places.take(), Some((BackendId(2), 2)), "the one freed first comes first");
        assert_eq!(places.take(), Some((BackendId(1), 2)));
    }

    #[test]
    fn places_that_are_found_free_rest() {
        let start = Instant::now();
        let mut before = Places::adopt(4, &HashMap::new());
        before.take();
        before.take();
        let backends = [(BackendId(1), backend(1)), (BackendId(2), backend(1).gone())];
        let mut places = Places::adopt(4, &backends.into_iter().collect());
        places.follow(&before);
        places.advance(start);
        assert_eq!(places.take(), Some((BackendId(3), 1)));
        assert_eq!(places.take(), None);
        places.advance(start + REST);
        assert_eq!(places.take(), Some((BackendId(2), 2)));
    }

    #[test]
    fn adopted_places_keep_their_generations() {
        let backends =
            [(BackendId(1), backend(7)), (BackendId(3), backend(9).gone()), (BackendId(9), backend(1))];
        let mut places = Places::adopt(5, &backends.into_iter().collect());
        assert_eq!(places.free(), 3, "2, 3 and 4; 9 lies outside of a table of 5");
        assert_eq!(places.take(), Some((BackendId(2), 1)));
        assert_eq!(places.take(), Some((BackendId(3), 10)));
        assert_eq!(places.take(), Some((BackendId(4), 1)));
        assert_eq!(places.generation(BackendId(1)), 7);
    }
}
