//! A pod that reaches itself through a Service.

mod support;

use podnet_common::host::HostTables;

use podnet_common::verdict::{Reason, Verdict};
use podnet_common::wire::Endpoint;
use support::*;

/// Both directions go back out of the interface they came in by, to the MAC address they came from; the
/// pod sees the Service as the other end of both.
#[test]
fn a_pod_reaches_itself() {
    for (family, protocol) in KINDS {
        let (client, service, backend) =
            (pod(family, 1, 40000), service(family, 1, 80), pod(family, 1, 8080));
        let masked = Endpoint { addr: service.addr, port: client.port };
        let mut tables = HostTables::new(1);
        tables.serve(service, protocol, [backend]);

        let mut frame = opening(client, service, protocol);
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Return(Reason::NewFlow));
        assert_eq!(frame, returned(opening(masked, backend, protocol)));
        for _ in 0..3 {
            let mut frame = data(backend, masked, protocol);
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Return(Reason::Reply));
            assert_eq!(frame, returned(data(service, client, protocol)));
            let mut frame = data(client, service, protocol);
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Return(Reason::Established));
            assert_eq!(frame, returned(data(masked, backend, protocol)));
            tables.wait(2);
        }
    }
}

/// Another pod of the same Service is reached as any pod is.
#[test]
fn only_the_same_pod_is_a_hairpin() {
    for (family, protocol) in KINDS {
        let (client, service) = (pod(family, 1, 40000), service(family, 1, 80));
        let mut tables = HostTables::new(1);
        tables.serve(service, protocol, [pod(family, 1, 80), pod(family, 2, 80)]);
        tables.drawn.push_back(u32::MAX);
        let mut frame = opening(client, service, protocol);
        assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Translated(Reason::NewFlow));
        assert_eq!(frame, opening(client, pod(family, 2, 80), protocol));
    }
}

/// Client, Service and backend use one port: both directions of the flow then have the same tuple.
#[test]
fn one_port_for_everything() {
    for (family, protocol) in KINDS {
        let (pod, service) = (pod(family, 1, 7946), service(family, 1, 7946));
        let mut tables = HostTables::new(1);
        tables.serve(service, protocol, [pod]);
        for sent in [opening(pod, service, protocol), data(pod, service, protocol)] {
            let mut frame = sent;
            assert!(matches!(from_pod(&mut frame, &mut tables), Verdict::Return(_)));
            let seen = read(&frame).unwrap();
            assert_eq!((seen.from(), seen.to()), (service, pod));
            tables.wait(2);
        }
    }
}

/// Two Services that a pod backs, reached from one port: two flows, told apart by the Services' addresses.
#[test]
fn two_services_of_one_pod() {
    for (family, protocol) in KINDS {
        let (client, backend) = (pod(family, 1, 40000), pod(family, 1, 8080));
        let services = [service(family, 1, 80), service(family, 2, 80)];
        let mut tables = HostTables::new(1);
        for service in services {
            tables.serve(service, protocol, [backend]);
            let mut frame = opening(client, service, protocol);
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Return(Reason::NewFlow));
        }
        for service in services {
            let masked = Endpoint { addr: service.addr, port: client.port };
            let mut frame = data(backend, masked, protocol);
            assert_eq!(from_pod(&mut frame, &mut tables), Verdict::Return(Reason::Reply));
            assert_eq!(frame, returned(data(service, client, protocol)));
        }
    }
}
