//! Which endpoints of a service port serve whom: the rules of kube-proxy's `CategorizeEndpoints`
//! (`pkg/proxy/topology.go`).

use podnet_common::service::BackendFlags;
use podnet_common::wire;

use super::object::Hints;

/// An endpoint of a service port, as its slice tells of it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Where it is.
    pub at: wire::Endpoint,
    /// Whether it is on this node.
    pub local: bool,
    /// Whether it takes new connections.
    pub ready: bool,
    /// Whether it answers.
    pub serving: bool,
    /// Whether it is about to leave.
    pub terminating: bool,
    /// For whom it is.
    pub hints: &'a Hints,
    /// How many connections it gets, in relation to the others.
    pub weight: u8,
}

impl Candidate<'_> {
    /// Whether it is what new connections go to when no endpoint is ready (KEP-1669).
    const fn last_resort(&self) -> bool {
        !self.ready && self.serving && self.terminating
    }

    fn is_for(&self, hint: Hint<'_>) -> bool {
        match hint {
            Hint::None => true,
            Hint::Node(node) => self.hints.nodes.iter().any(|name| **name == *node),
            Hint::Zone(zone) => self.hints.zones.iter().any(|name| **name == *zone),
        }
    }
}

/// Where a client is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place<'a> {
    /// The name of its node.
    pub node: &'a str,
    /// Its zone, if it is in one.
    pub zone: Option<&'a str>,
}

/// Which sets of endpoints a service port makes use of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The Cluster set: for the Cluster policy, and for what comes from inside to an address for outside.
    pub cluster: bool,
    /// The Local set: for the Local policy.
    pub local: bool,
}

/// Which hints hold.
#[derive(Clone, Copy, Debug)]
enum Hint<'a> {
    None,
    Node(&'a str),
    Zone(&'a str),
}

/// What is to be made of a service port's endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Categories {
    /// What each endpoint may be used for, in the order in which they were given.
    pub flags: Vec<BackendFlags>,
    /// Whether an endpoint could serve from anywhere in the cluster.
    pub anywhere: bool,
}

/// Sorts endpoints, and leaves one of those at the same place: an endpoint may be in two slices while it moves
/// from one to the other, and an address may be that of a pod that ends and of another one that has begun.
/// The one that stays is what counts, and of these the local one.
pub fn merge(candidates: &mut Vec<Candidate<'_>>) {
    candidates.sort_by_key(|it| (it.at, it.terminating, !it.local, !it.ready, !it.serving));
    candidates.dedup_by_key(|it| it.at);
}

/// Tells which endpoints are in which set.
///
/// Each set is made of those that are ready, or, if none is, of those that serve though they terminate; the
/// Local set falls back independently of the Cluster set, and goes by no hints.
pub fn categorize(candidates: &[Candidate<'_>], here: Place<'_>, wanted: Wanted) -> Categories {
    let hint = hint(candidates, here);
    let any_ready = candidates.iter().any(|it| it.ready);
    let any_local_ready = candidates.iter().any(|it| it.ready && it.local);
    let flags = candidates.iter().map(|it| {
        let in_cluster = if any_ready { it.ready && it.is_for(hint) } else { it.last_resort() };
        let in_local = it.local && if any_local_ready { it.ready } else { it.last_resort() };
        let flags = [
            // Or what a ready endpoint was given would be taken from it.
            (BackendFlags::SERVING, it.ready || it.serving),
            (BackendFlags::LOCAL, it.local),
            (BackendFlags::IN_CLUSTER, wanted.cluster && in_cluster),
            (BackendFlags::IN_LOCAL, wanted.local && in_local),
        ];
        let set = flags.into_iter().filter(|(_, set)| *set);
        set.fold(BackendFlags::PRESENT, |flags, (flag, _)| flags.with(flag))
    });
    Categories { flags: flags.collect(), anywhere: candidates.iter().any(|it| it.ready || it.last_resort()) }
}

/// Hints hold if all ready endpoints have some, and one of these is for here: those for nodes before those for
/// zones.
fn hint<'a>(candidates: &[Candidate<'_>], here: Place<'a>) -> Hint<'a> {
    let ready = || candidates.iter().filter(|it| it.ready);
    let holds = |hint| ready().any(|it| it.is_for(hint));
    let node = Hint::Node(here.node);
    if ready().all(|it| !it.hints.nodes.is_empty()) && holds(node) {
        return node;
    }
    match here.zone.map(Hint::Zone) {
        Some(zone) if ready().all(|it| !it.hints.zones.is_empty()) && holds(zone) => zone,
        _ => Hint::None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use podnet_common::wire::Be16;

    use super::*;

    /// An endpoint by its number.
    struct Given {
        number: u8,
        ready: bool,
        serving: bool,
        terminating: bool,
        local: bool,
        hints: Hints,
    }

    fn ready(number: u8) -> Given {
        Given {
            number,
            ready: true,
            serving: true,
            terminating: false,
            local: false,
            hints: Hints::default(),
        }
    }

    fn unready(number: u8) -> Given {
        Given { ready: false, serving: false, ..ready(number) }
    }

    fn terminating(number: u8) -> Given {
        Given { ready: false, terminating: true, ..ready(number) }
    }

    impl Given {
        fn local(self) -> Self {
            Self { local: true, ..self }
        }

        fn zones(self, zones: &[&str]) -> Self {
            Self { hints: Hints { zones: texts(zones), ..self.hints }, ..self }
        }

        fn node(self, node: &str) -> Self {
            Self { hints: Hints { nodes: texts(&[node]), ..self.hints }, ..self }
        }

        fn candidate(&self) -> Candidate<'_> {
            let addr = IpAddr::from(Ipv4Addr::new(10, 0, 0, self.number)).into();
            let &Self { local, ready, serving, terminating, ref hints, .. } = self;
            let at = wire::Endpoint { addr, port: Be16::new(80) };
            Candidate { at, local, ready, serving, terminating, hints, weight: 1 }
        }
    }

    fn texts(list: &[&str]) -> Box<[Arc<str>]> {
        list.iter().map(|text| Arc::from(*text)).collect()
    }

    const CLUSTER: Wanted = Wanted { cluster: true, local: false };
    const LOCAL: Wanted = Wanted { cluster: false, local: true };
    const BOTH: Wanted = Wanted { cluster: true, local: true };

    fn at<'a>(node: &'a str, zone: &'a str) -> Place<'a> {
        Place { node, zone: Some(zone) }
    }

    const NOWHERE: Place<'_> = Place { node: "", zone: None };

    /// The Cluster set, the Local set, and whether there is an endpoint anywhere.
    fn sets(given: &[Given], here: Place<'_>, wanted: Wanted) -> (Vec<u8>, Vec<u8>, bool) {
        let candidates: Vec<_> = given.iter().map(Given::candidate).collect();
        let Categories { flags, anywhere } = categorize(&candidates, here, wanted);
        assert!(flags.iter().all(|flags| flags.has(BackendFlags::PRESENT)));
        let with = |flag| {
            let all = given.iter().zip(&flags).filter(|(_, flags)| flags.has(flag));
            all.map(|(given, _)| given.number).collect()
        };
        (with(BackendFlags::IN_CLUSTER), with(BackendFlags::IN_LOCAL), anywhere)
    }

    fn cluster(given: &[Given], here: Place<'_>) -> Vec<u8> {
        let (cluster, local, anywhere) = sets(given, here, CLUSTER);
        assert_eq!((local.len(), anywhere), (0, !cluster.is_empty()));
        cluster
    }

    /// One endpoint for each of the zones, all ready.
    fn zoned(zones: &[&str]) -> Vec<Given> {
        (1..).zip(zones).map(|(number, zone)| ready(number).zones(&[zone])).collect()
    }

    #[test]
    fn topology_hints_for_zones_hold_if_all_have_some_and_one_is_for_here() {
        let all = zoned(&["a", "b", "c", "a"]);
        assert_eq!(cluster(&all, at("n", "a")), [1, 4]);
        assert_eq!(cluster(&all, at("n", "d")), [1, 2, 3, 4], "none is for this zone");
        assert_eq!(cluster(&all, NOWHERE), [1, 2, 3, 4], "the node is in no zone");
        assert_eq!(cluster(&all, at("n", "")), [1, 2, 3, 4], "its label is empty");
        let mut some = zoned(&["a", "b", "c", "a"]);
        some[2] = ready(3);
        assert_eq!(cluster(&some, at("n", "a")), [1, 2, 3, 4], "one has none");
    }

    #[test]
    fn topology_hints_of_endpoints_that_are_not_ready_do_not_count() {
        let mut one = zoned(&["a", "b", "c"]);
        one.push(unready(4).zones(&["a"]));
        assert_eq!(cluster(&one, at("n", "a")), [1]);
        let only = [unready(1).zones(&["a"]), ready(2).zones(&["b"]), ready(3).zones(&["c"])];
        assert_eq!(cluster(&only, at("n", "a")), [2, 3], "none of this zone is ready");
        let without = [ready(1).zones(&["a"]), ready(2).zones(&["b"]), unready(3)];
        assert_eq!(cluster(&without, at("n", "a")), [1], "one without hints is not ready");
    }

    #[test]
    fn topology_hints_may_be_for_several_zones() {
        let all = [
            ready(1).zones(&["a", "b", "c"]),
            ready(2).zones(&["b", "c"]),
            ready(3).zones(&["b", "d"]),
            ready(4).zones(&["c"]),
        ];
        assert_eq!(cluster(&all, at("n", "c")), [1, 2, 4]);
    }

    #[test]
    fn topology_hints_for_nodes_come_before_those_for_zones() {
        let all = || {
            let zoned = zoned(&["a", "b", "c", "a"]).into_iter();
            let noded = (1..).zip(zoned).map(|(number, given)| given.node(&format!("n{number}")));
            noded.collect::<Vec<_>>()
        };
        assert_eq!(cluster(&all(), at("n1", "a")), [1]);
        assert_eq!(cluster(&all(), at("n0", "a")), [1, 4], "none is for this node, some are for its zone");
        let mut some = all();
        some[1] = ready(2);
        assert_eq!(cluster(&some, at("n1", "a")), [1, 2, 3, 4], "one has neither");
        some[1] = ready(2).zones(&["b"]);
        assert_eq!(cluster(&some, at("n1", "a")), [1, 4], "one has none for nodes");
    }

    #[test]
    fn topology_is_of_the_cluster_set_only() {
        let all = [
            ready(1).zones(&["a"]).local(),
            ready(2).zones(&["b"]).local(),
            ready(3).zones(&["c"]),
            ready(4).zones(&["a"]),
        ];
        assert_eq!(sets(&all, at("n", "a"), BOTH), (vec![1, 4], vec![1, 2], true));
        let crossed = [
            ready(1).zones(&["a"]).local(),
            ready(2).zones(&["b"]).local(),
            ready(3).zones(&["a"]),
            ready(4).zones(&["b"]),
        ];
        assert_eq!(sets(&crossed, at("n", "a"), BOTH), (vec![1, 3], vec![1, 2], true));
    }

    #[test]
    fn local_set_is_the_ready_endpoints_of_this_node() {
        assert_eq!(sets(&[], NOWHERE, LOCAL), (vec![], vec![], false));
        assert_eq!(sets(&[ready(1), ready(2)], NOWHERE, LOCAL), (vec![], vec![], true), "all are elsewhere");
        assert_eq!(sets(&[ready(1).local(), ready(2).local()], NOWHERE, LOCAL), (vec![], vec![1, 2], true));
        assert_eq!(sets(&[ready(1).local(), ready(2)], NOWHERE, LOCAL), (vec![], vec![1], true));
        assert_eq!(sets(&[ready(1), ready(2).local()], NOWHERE, LOCAL), (vec![], vec![2], true));
    }

    #[test]
    fn both_sets_are_independent() {
        assert_eq!(sets(&[ready(1).local(), ready(2)], NOWHERE, BOTH), (vec![1, 2], vec![1], true));
        assert_eq!(sets(&[ready(1), ready(2)], NOWHERE, BOTH), (vec![1, 2], vec![], true));
        assert_eq!(sets(&[ready(1), ready(2).local()], NOWHERE, CLUSTER), (vec![1, 2], vec![], true));
    }

    #[test]
    fn cluster_set_falls_back_to_serving_and_terminating() {
        assert_eq!(cluster(&[], NOWHERE), [0; 0]);
        assert_eq!(cluster(&[unready(1), unready(2)], NOWHERE), [0; 0]);
        assert_eq!(cluster(&[unready(1)], at("n", "a")), [0; 0]);
        assert_eq!(cluster(&[unready(1), ready(2)], NOWHERE), [2]);
        assert_eq!(cluster(&[terminating(1), ready(2)], NOWHERE), [2]);
        assert_eq!(cluster(&[terminating(1).local(), terminating(2)], NOWHERE), [1, 2]);
        let dead = Given { serving: false, ..terminating(1) };
        let idle = Given { serving: true, ..unready(2) };
        assert_eq!(cluster(&[dead, idle, terminating(3)], NOWHERE), [3]);
    }

    #[test]
    fn local_set_falls_back_independently_of_the_cluster_set() {
        let elsewhere = [terminating(1), terminating(2)];
        assert_eq!(sets(&elsewhere, NOWHERE, BOTH), (vec![1, 2], vec![], true));
        let mixed = [ready(1), unready(2).local(), terminating(3).local(), terminating(4)];
        assert_eq!(sets(&mixed, NOWHERE, BOTH), (vec![1], vec![3], true));
        assert_eq!(sets(&elsewhere, NOWHERE, LOCAL), (vec![], vec![], true), "they are somewhere");
    }

    #[test]
    fn endpoints_tell_whether_they_serve_and_are_local() {
        let given = [unready(1).local(), terminating(2)];
        let candidates: Vec<_> = given.iter().map(Given::candidate).collect();
        let flags = categorize(&candidates, NOWHERE, LOCAL).flags;
        assert_eq!(flags[0], BackendFlags::PRESENT.with(BackendFlags::LOCAL));
        assert_eq!(flags[1], BackendFlags::PRESENT.with(BackendFlags::SERVING));
    }

    #[test]
    fn endpoints_that_are_ready_serve_whatever_is_said_besides() {
        let odd = Given { serving: false, ..ready(1) };
        let flags = categorize(&[odd.candidate()], NOWHERE, CLUSTER).flags;
        assert_eq!(
            flags[0],
            BackendFlags::PRESENT.with(BackendFlags::SERVING).with(BackendFlags::IN_CLUSTER)
        );
    }

    #[test]
    fn duplicates_are_kept_once_and_the_local_one_wins() {
        let given = [ready(2), ready(1), ready(2).local(), ready(1)];
        let mut candidates: Vec<_> = given.iter().map(Given::candidate).collect();
        merge(&mut candidates);
        assert_eq!(candidates.iter().map(|it| it.local).collect::<Vec<_>>(), [false, true]);
        // The address of a pod that ends is that of another one by now.
        let given = [terminating(1).local(), ready(1), unready(2), ready(2)];
        let mut candidates: Vec<_> = given.iter().map(Given::candidate).collect();
        merge(&mut candidates);
        assert!(candidates.iter().all(|it| it.ready && !it.local), "{candidates:?}");
    }
}
