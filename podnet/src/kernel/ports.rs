//! The source ports of masqueraded flows, kept from being bound to by chance.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use podnet_common::origin::MASQUERADE_PORTS;

use super::error::Error;

/// Ports that no socket gets unless it asks for them (Documentation/networking/ip-sysctl.rst), for both
/// families.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// Has the kernel give the ports of masqueraded flows to no socket that does not ask for one of them.
///
/// # Errors
/// When the kernel's list cannot be read or written.
pub fn reserve_ports() -> Result<(), Error> {
    let list = read()?;
    match added(&list, &MASQUERADE_PORTS) {
        Some(more) => write(&more),
        None => Ok(()),
    }
}

/// Takes that back; whether there was something to take back.
///
/// # Errors
/// When the kernel's list cannot be read or written.
pub fn release_ports() -> Result<bool, Error> {
    let list = read()?;
    match removed(&list, &MASQUERADE_PORTS) {
        Some(less) => write(&less).map(|()| true),
        None => Ok(false),
    }
}

fn read() -> Result<String, Error> {
    fs::read_to_string(RESERVED).map_err(failed("reading"))
}

fn write(list: &str) -> Result<(), Error> {
    // An empty write changes nothing, a line without ports clears the list.
    fs::write(Path::new(RESERVED), format!("{list}\n")).map_err(failed("writing"))
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::File { action, path: PathBuf::from(RESERVED), source }
}

fn ranges(list: &str) -> impl Iterator<Item = &str> {
    list.trim().split(',').map(str::trim).filter(|range| !range.is_empty())
}

fn bounds(range: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

fn name(ports: &RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

/// `list` with `ports`; `None` if they are in it.
fn added(list: &str, ports: &RangeInclusive<u16>) -> Option<String> {
    let holds = |range: RangeInclusive<u16>| range.contains(ports.start()) && range.contains(ports.end());
    if ranges(list).filter_map(bounds).any(holds) {
        return None;
    }
    let all: Vec<&str> = ranges(list).collect();
    let ports = name(ports);
    Some(all.into_iter().chain([ports.as_str()]).collect::<Vec<_>>().join(","))
}

/// `list` without `ports`; `None` if they are not in it as podnet has put them there.
fn removed(list: &str, ports: &RangeInclusive<u16>) -> Option<String> {
    let ports = name(ports);
    let kept: Vec<&str> = ranges(list).filter(|range| *range != ports).collect();
    (kept.len() < ranges(list).count()).then(|| kept.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_have_reserved_stays() {
        let ports = 61_000..=u16::MAX;
        assert_eq!(added("\n", &ports).as_deref(), Some("61000-65535"));
        assert_eq!(added("8080,9000-9100\n", &ports).as_deref(), Some("8080,9000-9100,61000-65535"));
        assert_eq!(added("8080,61000-65535\n", &ports), None);
        assert_eq!(added("60000-65535\n", &ports), None, "the kernel has joined it with another range");
        assert_eq!(removed("8080,61000-65535\n", &ports).as_deref(), Some("8080"));
        assert_eq!(removed("61000-65535\n", &ports).as_deref(), Some(""));
        assert_eq!(removed("60000-65535\n", &ports), None, "that may be somebody else's");
    }
}
