//! The sizes of the kernel's tables: what memory they take is said at the start.
//! A table that is full: what is in it goes on working, and the error names table, size and flag.

use anyhow::{Context as _, Result, ensure};
use tests::agent::{Agent, Settings, SocketLb};
use tests::lab::Lab;
use tests::manifests::{Family, Manifests, SERVICE_PORT, Service};
use tests::peer::{self, Server, Target, Transport};
use tests::pod::PodKind;

/// Fills a table with `flag` set to `size` by applying `too_much` after a small Service.
fn full(flag: &str, size: u32, tables: &[&str], too_much: impl Fn(Service) -> Vec<Service>) -> Result<()> {
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let client = node.pod("client", PodKind::Ptp)?;
    let backend = node.pod("backend", PodKind::Ptp)?;
    let _server = Server::start(backend.place(), "backend")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let service = Service::new("web", 10).with([&backend]);
    manifests.apply(&service)?;
    let mut settings = Settings::new(&manifests, SocketLb::Off);
    settings.further = vec![flag.to_owned(), size.to_string()];
    let agent = Agent::start(&node, settings)?;
    agent.wait_for(&service)?;
    manifests.apply_all("more.yaml", &too_much(Service::new("more", 20)))?;
    agent.wait_for_log(flag)?;
    let log = agent.log();
    let complaint = log.lines().find(|line| line.contains(flag) && line.contains("full"));
    ensure!(
        complaint.is_some_and(
            |line| tables.iter().any(|table| line.contains(table)) && line.contains(&size.to_string())
        ),
        "no line with table, size and flag:\n{log}"
    );
    for family in Family::ALL {
        let frontend = (service.address(family)?, SERVICE_PORT).into();
        let answer = peer::ask(client.place(), &Target::new(Transport::Tcp, frontend))?;
        ensure!(answer.is_ok(), "{family:?}: {answer:?}\n{log}");
    }
    // When there is less to serve, all of it is served again.
    let smaller = Service::new("other", 30).only(Family::V4);
    manifests.write("more.yaml", "---\n")?;
    manifests.apply(&smaller)?;
    agent.wait_for(&smaller)?;
    agent.wait_for(&service)
}

#[test]
fn full_table_of_frontends() -> Result<()> {
    // Each Service of two families takes 6: TCP, UDP, and all other ports.
    full("--max-frontends", 12, &["FRONTENDS"], |service| {
        (0..4).map(|number| service.clone().numbered(20 + number)).collect()
    })
}

#[test]
fn full_table_of_slots() -> Result<()> {
    // 20 endpoints of two families and two protocols. Each takes a slot and a place among the backends.
    full("--max-slots", 64, &["SLOTS", "BACKENDS"], |service| vec![service.with_nobody(20)])
}

/// With the tables as they are by default: 65,536 frontends, 262,144 slots and a million flows.
#[test]
fn memory_of_the_tables_is_said_and_bounded() -> Result<()> {
    const MIB: u64 = 1 << 20;
    const BUDGET: u64 = 400 * MIB;
    let Some(lab) = Lab::start()? else { return Ok(()) };
    let node = lab.node("a")?;
    let manifests = Manifests::new(lab.folder("manifests")?);
    let mut settings = Settings::new(&manifests, SocketLb::All);
    for (flag, size) in [
        ("max-frontends", 65_536),
        ("max-slots", 262_144),
        ("max-flows", 1_048_576),
        ("max-sockets", 262_144),
    ] {
        settings.further.extend([format!("--{flag}"), size.to_string()]);
    }
    let agent = Agent::start(&node, settings)?;
    let log = agent.log();
    let said = log.split("the tables take ").nth(1).context("nothing is said")?;
    let mut words = said.split_whitespace();
    let number: u64 = words.next().context("no number")?.parse().with_context(|| said.to_owned())?;
    ensure!(words.next() == Some("MiB"), "{said}");
    ensure!((100..=BUDGET / MIB).contains(&number), "{number} MiB: {said}");
    for table in ["FLOWS", "PEERS", "FRONTENDS", "SLOTS", "BACKENDS"] {
        ensure!(said.contains(table), "{table} is not named: {said}");
    }
    Ok(())
}
