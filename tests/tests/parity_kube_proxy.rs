//! podnet against the real kube-proxy: the same objects, the same packets, the same outcomes.
//!
//! Each history has a seed of its own. `PODNET_PARITY_SEED` is that of the first one, `PODNET_PARITY_SECONDS`
//! how long each test makes new ones. Without a seed it is always the same ones, so that what a change is held
//! against does not depend on the hour.

use std::cell::RefCell;
use std::env;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Error, Result, bail, ensure};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use tests::agent::SocketLb;
use tests::differential::compare::Tally;
use tests::differential::generate;
use tests::differential::objects::Step;
use tests::differential::scope::Scope;
use tests::differential::world::{Cluster, Proxy};
use tests::require;

fn number(variable: &str) -> Result<Option<u64>> {
    let Some(value) = env::var_os(variable).filter(|value| !value.is_empty()) else { return Ok(None) };
    let number = value.to_str().and_then(|value| value.parse().ok());
    number.map(Some).with_context(|| format!("{variable} is not a number"))
}

/// A history that differs, as small as it could be made, and what differs.
struct Found {
    history: Vec<Step>,
    differences: String,
}

/// Runs the history of `seed`; if it differs, the smallest one like it that differs.
fn run(cluster: &mut Cluster, scope: &Scope, seed: u64, tally: &mut Tally) -> Result<Option<Found>> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: 1,
        failure_persistence: None,
        max_shrink_iters: 300,
        max_shrink_time: 180_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (cell, broken) = (RefCell::new((cluster, tally)), RefCell::new(None::<Error>));
    let result = runner.run(&generate::history(scope), |history| {
        if broken.borrow().is_some() {
            return Ok(());
        }
        let (cluster, tally) = &mut *cell.borrow_mut();
        match cluster.run(scope, &history, tally) {
            Ok(different) if different.is_empty() => Ok(()),
            Ok(different) => {
                let mut text = String::new();
                for case in &different {
                    let _ = writeln!(text, "{case}");
                }
                Err(TestCaseError::fail(text))
            }
            Err(error) => {
                *broken.borrow_mut() = Some(error.context(show(&history)));
                Ok(())
            }
        }
    });
    if let Some(error) = broken.into_inner() {
        return Err(error);
    }
    match result {
        Ok(()) => Ok(None),
        Err(TestError::Fail(differences, history)) => {
            Ok(Some(Found { history, differences: differences.message().to_owned() }))
        }
        Err(TestError::Abort(reason)) => bail!("{reason}"),
    }
}

fn show(history: &[Step]) -> String {
    let mut text = String::new();
    for (number, step) in history.iter().enumerate() {
        for (slot, service) in step {
            let _ = match service {
                Some(service) => writeln!(text, "step {number}: s{slot} is {service:?}"),
                None => writeln!(text, "step {number}: s{slot} is removed"),
            };
        }
    }
    text
}

/// Makes histories until the time is over.
fn compare(scope: &Scope, podnet: &[Proxy]) -> Result<()> {
    if require::root().is_none() || require::podnet().is_none() {
        return Ok(());
    }
    let Some(programs) = require::control_plane() else { return Ok(()) };
    let mut seed = number("PODNET_PARITY_SEED")?.unwrap_or(1);
    let time = Duration::from_secs(number("PODNET_PARITY_SECONDS")?.unwrap_or(60));
    let mut cluster = Cluster::start(&programs, podnet)?;
    let mut tally = Tally::default();
    let start = Instant::now();
    eprintln!("the first seed is {seed}");
    loop {
        let found = run(&mut cluster, scope, seed, &mut tally)
            .with_context(|| format!("with the seed {seed}:\n{}", cluster.last_words()))?;
        if let Some(Found { history, differences }) = found {
            let history = show(&history);
            let logs = cluster.last_words();
            bail!("seed {seed}: after this history\n{history}\n{differences}\n{tally}\n{logs}");
        }
        if start.elapsed() >= time {
            break;
        }
        seed += 1;
    }
    eprintln!("{tally}in {:.0} s", start.elapsed().as_secs_f64());
    ensure!(tally.requests > 0, "nothing was sent");
    Ok(())
}

#[test]
fn parity_of_podnet() -> Result<()> {
    compare(&Scope::compared(), &[Proxy::Podnet(SocketLb::Host), Proxy::Podnet(SocketLb::All)])
}

/// The executable semantics are those of kube-proxy, in everything that podnet does or will do.
#[test]
fn parity_of_the_semantics() -> Result<()> {
    compare(&Scope::everything(), &[])
}

/// A podnet that does not see all slices is found out, by a history that has little else in it.
#[test]
fn parity_finds_a_planted_difference() -> Result<()> {
    if require::root().is_none() || require::podnet().is_none() {
        return Ok(());
    }
    let Some(programs) = require::control_plane() else { return Ok(()) };
    let mut cluster = Cluster::start(&programs, &[Proxy::Misled])?;
    let mut tally = Tally::default();
    for seed in 0..20 {
        let Some(found) = run(&mut cluster, &Scope::plain(), seed, &mut tally)? else { continue };
        eprintln!("seed {seed}:\n{}\n{}\n{tally}", show(&found.history), found.differences);
        ensure!(tally.differences > 0);
        let services: Vec<_> = found.history.iter().flat_map(|step| step.values().flatten()).collect();
        ensure!(services.len() == 1 && services[0].slices.len() == 2, "it is not small");
        return Ok(());
    }
    bail!("it has not been found: {tally}")
}
