//! The choice of a backend is uniform, and never of one that is not there.

mod support;

use podnet_common::host::HostTables;
use podnet_common::select::select;
use podnet_common::service::{BackendId, Frontend, SlotRange};
use podnet_common::wire::{Family, Protocol};
use proptest::prelude::*;
use support::*;

/// Pearson's chi-square over 100,000 choices stays below the 99.9 % quantile, which is about
/// `n + 3.09 sqrt(2 n) + 6` for n degrees of freedom. The seed is fixed: the test cannot fail by chance.
#[test]
fn every_backend_gets_its_share() {
    const CHOICES: u32 = 100_000;
    for count in [2_u8, 3, 7, 10, 100, 250] {
        let mut tables = HostTables::new(count.into());
        let at = service(Family::V4, 1, 80);
        tables.serve(at, Protocol::TCP, (0..count).map(|n| pod(Family::V4, n, 80)));
        let frontend = *tables.frontends.values().next().unwrap();
        let mut counts = vec![0_u32; count.into()];
        for _ in 0..CHOICES {
            let choice = select(&mut tables, frontend.inside).unwrap();
            counts[choice.backend.id.0 as usize - 1] += 1;
        }
        let expected = f64::from(CHOICES) / f64::from(count);
        let chi: f64 = counts.iter().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum();
        let degrees = f64::from(count - 1);
        assert!(chi < degrees + 3.09 * (2.0 * degrees).sqrt() + 6.0, "{count} backends: {chi}");
    }
}

/// Numbers one after the other, as the worst generator would give them, are spread as well.
#[test]
fn shares_are_equal_over_the_whole_range_of_random_numbers() {
    let mut tables = HostTables::new(0);
    tables.serve(service(Family::V4, 1, 80), Protocol::TCP, (0..5).map(|n| pod(Family::V4, n, 80)));
    let frontend = *tables.frontends.values().next().unwrap();
    let mut counts = [0_u32; 5];
    for random in (0..=u32::MAX).step_by(1 << 16) {
        tables.drawn.push_back(random);
        counts[select(&mut tables, frontend.inside).unwrap().backend.id.0 as usize - 1] += 1;
    }
    assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
}

#[test]
fn the_choice_carries_address_and_generation() {
    let mut tables = HostTables::new(0);
    let ids = tables.serve(service(Family::V6, 1, 80), Protocol::TCP, [pod(Family::V6, 2, 8080)]);
    tables.change(ids[0], |mut backend| {
        backend.generation = 7;
        backend
    });
    let frontend = *tables.frontends.values().next().unwrap();
    let choice = select(&mut tables, frontend.inside).unwrap();
    assert_eq!(choice.endpoint, pod(Family::V6, 2, 8080));
    assert_eq!((choice.backend.id, choice.backend.generation), (ids[0], 7));
}

/// Arrays in the kernel are full of zeroes where nothing was written.
#[test]
fn a_slot_that_was_never_written_names_nobody() {
    let mut tables = HostTables::new(0);
    tables.slots = vec![BackendId(0); 4];
    assert_eq!(select(&mut tables, SlotRange { base: 0, count: 4 }), None);
}

proptest! {
    #[test]
    fn only_slots_of_the_frontend_are_chosen(base: u32, count: u32, random: u32) {
        struct Slots(u32, std::cell::Cell<Option<u32>>);
        impl podnet_common::tables::Services for Slots {
            fn frontend(&self, _: &podnet_common::service::FrontendKey) -> Option<Frontend> {
                None
            }
            fn slot(&self, index: u32) -> Option<BackendId> {
                self.1.set(Some(index));
                None
            }
            fn backend(&self, _: BackendId) -> Option<podnet_common::service::Backend> {
                None
            }
            fn random(&mut self) -> u32 {
                self.0
            }
        }
        let mut slots = Slots(random, None.into());
        prop_assert_eq!(select(&mut slots, SlotRange { base, count }), None);
        match slots.1.get() {
            Some(index) => prop_assert!(index.wrapping_sub(base) < count),
            None => prop_assert_eq!(count, 0),
        }
    }

    #[test]
    fn tables_with_holes_are_survived(
        base in 0..20_u32, count in 0..20_u32, slots in proptest::collection::vec(0..10_u32, 0..20), seed: u64,
    ) {
        let mut tables = HostTables::new(seed);
        tables.serve(service(Family::V4, 1, 80), Protocol::TCP, (0..5).map(|n| pod(Family::V4, n, 80)));
        tables.slots = slots.into_iter().map(BackendId).collect();
        if let Some(choice) = select(&mut tables, SlotRange { base, count }) {
            prop_assert!((1..=5).contains(&choice.backend.id.0));
        }
    }
}
