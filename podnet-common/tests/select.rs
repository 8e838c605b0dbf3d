//! The choice of a backend is uniform, and never of one that is not there.
#![allow(clippy::unwrap_used, reason = "what is unexpected fails the test")]

mod support;

use podnet_common::affinity::{Affinity, AffinityKey};
use podnet_common::conntrack::{Time, Tuple};
use podnet_common::host::HostTables;
use podnet_common::maglev::hash;
use podnet_common::select::{Choice, Nobody, Side, select};
use podnet_common::service::{
    Algorithm, BackendFlags, BackendId, Frontend, FrontendFlags, FrontendKind, ServiceId, SlotRange,
};
use podnet_common::tables::Services;
use podnet_common::wire::{Be16, Endpoint, Family, Protocol};
use proptest::prelude::*;
use support::*;

/// What a client sends first.
fn from(client: u8) -> Tuple {
    Tuple::between(pod(Family::V4, client, 40_000), service(Family::V4, 1, 80), Protocol::TCP)
}

/// The choice for a client inside, of a frontend with these slots.
fn inside(services: &mut impl Services, slots: SlotRange) -> Result<Choice, Nobody> {
    let frontend = Frontend::new(FrontendKind::CLUSTER_IP, ServiceId(1), slots);
    select(services, &frontend, Side::Inside, &from(0))
}

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
            let choice = select(&mut tables, &frontend, Side::Inside, &from(0)).unwrap();
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
        counts[select(&mut tables, &frontend, Side::Inside, &from(0)).unwrap().backend.id.0 as usize - 1] +=
            1;
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
    let choice = select(&mut tables, &frontend, Side::Inside, &from(0)).unwrap();
    assert_eq!(choice.endpoint, pod(Family::V6, 2, 8080));
    assert_eq!((choice.backend.id, choice.backend.generation), (ids[0], 7));
}

/// Arrays in the kernel are full of zeroes where nothing was written.
#[test]
fn a_slot_that_was_never_written_names_nobody() {
    let mut tables = HostTables::new(0);
    tables.slots = vec![BackendId(0); 4];
    assert_eq!(inside(&mut tables, SlotRange { base: 0, count: 4 }), Err(Nobody::NoEndpoints));
}

/// Five backends, of which inside may use the first two and outside the third, for ten seconds a client.
fn sticky() -> (HostTables, Frontend) {
    let mut tables = HostTables::new(3);
    tables.serve(service(Family::V4, 1, 80), Protocol::TCP, (0..5).map(|n| pod(Family::V4, n, 80)));
    let mut frontend = *tables.frontends.values().next().unwrap();
    frontend = frontend.with_slots(SlotRange { base: 0, count: 5 }, SlotRange { base: 2, count: 1 });
    frontend.affinity = 10;
    frontend.flags = FrontendFlags::OUTSIDE_LOCAL.with(FrontendFlags::OUTSIDE_DROP);
    (tables, frontend)
}

fn chosen(tables: &mut HostTables, frontend: &Frontend, client: u8) -> u32 {
    select(tables, frontend, Side::Inside, &from(client)).unwrap().backend.id.0
}

#[test]
fn affinity_is_refreshed_by_each_new_connection() {
    let (mut tables, frontend) = sticky();
    let first = chosen(&mut tables, &frontend, 9);
    for _ in 0..20 {
        tables.wait(9);
        assert_eq!(chosen(&mut tables, &frontend, 9), first);
    }
    tables.wait(11);
    tables.drawn.push_back(if first == 1 { u32::MAX } else { 0 });
    assert_ne!(chosen(&mut tables, &frontend, 9), first, "it has timed out");
}

#[test]
fn affinity_is_each_clients_own_and_the_service_ports() {
    let (mut tables, mut frontend) = sticky();
    tables.drawn.extend([0, u32::MAX]);
    assert_eq!((chosen(&mut tables, &frontend, 8), chosen(&mut tables, &frontend, 9)), (1, 5));
    assert_eq!((chosen(&mut tables, &frontend, 8), chosen(&mut tables, &frontend, 9)), (1, 5));
    frontend.kind = FrontendKind::NODE_PORT;
    assert_eq!(chosen(&mut tables, &frontend, 8), 1, "all frontends share it");
    frontend.service = ServiceId(77);
    tables.drawn.push_back(u32::MAX);
    assert_eq!(chosen(&mut tables, &frontend, 8), 5, "another service port does not");
}

#[test]
fn affinity_to_an_endpoint_that_has_left_the_set_is_ignored() {
    let (mut tables, frontend) = sticky();
    tables.drawn.push_back(0);
    assert_eq!(chosen(&mut tables, &frontend, 9), 1);
    tables.change(BackendId(1), |mut backend| {
        backend.flags = BackendFlags::PRESENT.with(BackendFlags::SERVING);
        backend
    });
    tables.drawn.push_back(u32::MAX);
    assert_eq!(chosen(&mut tables, &frontend, 9), 5);
    assert_eq!(chosen(&mut tables, &frontend, 9), 5, "the new one is remembered");
    tables.change(BackendId(5), |mut backend| {
        backend.generation += 1;
        backend
    });
    tables.drawn.push_back(0);
    assert_eq!(chosen(&mut tables, &frontend, 9), 1, "another endpoint in the same place is another");
}

#[test]
fn policies_have_each_their_own_set() {
    let (mut tables, mut frontend) = sticky();
    frontend.affinity = 0;
    let outside = |tables: &mut HostTables, frontend: &Frontend| {
        select(tables, frontend, Side::Outside, &from(0)).map(|choice| choice.backend.id.0)
    };
    assert_eq!(outside(&mut tables, &frontend), Ok(3));
    frontend = frontend.with_slots(frontend.inside, SlotRange::default());
    assert_eq!(outside(&mut tables, &frontend), Err(Nobody::NoneLocal));
    frontend.flags = FrontendFlags::NONE;
    assert_eq!(outside(&mut tables, &frontend), Err(Nobody::NoEndpoints));
    frontend.kind = FrontendKind::CLUSTER_IP_REST;
    assert_eq!(outside(&mut tables, &frontend), Err(Nobody::NoPort));
}

proptest! {
    #[test]
    fn only_slots_of_the_frontend_are_chosen(base: u32, count: u32, random: u32) {
        struct Slots(u32, std::cell::Cell<Option<u32>>);
        impl Services for Slots {
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
            fn now(&self) -> Time {
                Time(0)
            }
            fn affinity(&self, _: &AffinityKey) -> Option<Affinity> {
                None
            }
            fn remember_client(&mut self, _: &AffinityKey, _: &Affinity) {}
        }
        let mut slots = Slots(random, None.into());
        prop_assert_eq!(inside(&mut slots, SlotRange { base, count }), Err(Nobody::NoEndpoints));
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
        if let Ok(choice) = inside(&mut tables, SlotRange { base, count }) {
            prop_assert!((1..=5).contains(&choice.backend.id.0));
        }
    }
}

/// Two nodes that have seen nothing of each other, and whose dice fall otherwise.
#[test]
fn maglev_chooses_alike_on_every_node() {
    let (mut tables, mut frontend) = sticky();
    frontend = frontend.with_slots(frontend.inside, frontend.inside);
    frontend.algorithm = Algorithm::MAGLEV;
    let mut other = tables.clone();
    other.seed = 99;
    for affinity in [0, 10] {
        frontend.affinity = affinity;
        let mut chosen = [0_u32; 5];
        for port in 1..2000 {
            for client in 1..=10 {
                let client = Endpoint { port: Be16::new(port), ..pod(Family::V4, client, 0) };
                let tuple = Tuple::between(client, service(Family::V4, 1, 80), Protocol::TCP);
                let here = select(&mut tables, &frontend, Side::Outside, &tuple).unwrap();
                assert_eq!(Ok(here), select(&mut other, &frontend, Side::Outside, &tuple));
                chosen[here.backend.id.0 as usize - 1] += 1;
                if affinity > 0 {
                    other.affinities.clear();
                    let again = Endpoint { port: Be16::new(port ^ 0x5555), ..client };
                    let tuple = Tuple::between(again, service(Family::V4, 1, 80), Protocol::TCP);
                    assert_eq!(Ok(here), select(&mut other, &frontend, Side::Outside, &tuple));
                }
            }
        }
        let expected = 1999 * 10 / 5;
        assert!(affinity > 0 || chosen.iter().all(|n| n.abs_diff(expected) < expected / 20), "{chosen:?}");
    }
    let inside: Vec<_> = (0..20)
        .map(|_| select(&mut tables, &frontend, Side::Inside, &from(77)).unwrap().backend.id)
        .collect();
    frontend.affinity = 0;
    let free: Vec<_> = (0..20)
        .map(|_| select(&mut tables, &frontend, Side::Inside, &from(77)).unwrap().backend.id)
        .collect();
    assert!(inside.iter().all(|id| *id == inside[0]) && free.iter().any(|id| *id != free[0]));
}

/// A change of any one bit changes about half of the hash's bits.
#[test]
fn all_of_a_tuple_tells_in_its_hash() {
    let base = from(5);
    let mut changed = Vec::new();
    for bit in 0..16 {
        let flip = |end: Endpoint| Endpoint { port: Be16::new(end.port.get() ^ 1 << bit), ..end };
        changed.push(Tuple::between(flip(base.source()), base.destination(), Protocol::TCP));
        changed.push(Tuple::between(base.source(), flip(base.destination()), Protocol::TCP));
    }
    for family in [Family::V4, Family::V6] {
        let changed_by = |n: u8| Tuple::between(pod(family, n, 1), service(family, n, 2), Protocol::TCP);
        changed.extend((0..=255).map(changed_by));
    }
    changed.push(Tuple::between(base.source(), base.destination(), Protocol::UDP));
    let bits: Vec<u32> = changed.iter().map(|tuple| (hash(tuple) ^ hash(&base)).count_ones()).collect();
    let mean = f64::from(bits.iter().sum::<u32>()) / bits.len() as f64;
    assert!((15.0..17.0).contains(&mean) && bits.iter().all(|n| *n > 4), "{mean} {bits:?}");
}
