//! The kernel's own connection tracking, which sees only the beginning and the end of flows that take short
//! cuts.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::error::Error;

/// Whether segments outside the window are what a connection may send (1), or INVALID (0); see
/// Documentation/networking/nf_conntrack-sysctl.rst.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// What the setting was, where it is to be changed: to have the kernel take the end of a connection for its end
/// though most of its segments went past; many network plugins have rules that drop what is INVALID. Where
/// nothing is tracked there is nothing to do.
///
/// # Errors
/// When the setting cannot be read.
pub(super) fn strict() -> Result<Option<u8>, Error> {
    match fs::read_to_string(LIBERAL) {
        Ok(setting) => Ok(setting.trim().parse().ok().filter(|former| *former != TOLERANT)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("reading", source)),
    }
}

/// Changes it so.
///
/// # Errors
/// When the setting cannot be written.
pub(super) fn tolerate() -> Result<(), Error> {
    write(TOLERANT)
}

/// Sets what it was, unless somebody else has changed it meanwhile.
///
/// # Errors
/// When the setting cannot be read or written.
pub(super) fn restore(former: u8) -> Result<(), Error> {
    match fs::read_to_string(LIBERAL) {
        Ok(setting) if setting.trim().parse() == Ok(TOLERANT) => write(former),
        _ => Ok(()),
    }
}

const TOLERANT: u8 = 1;

fn write(setting: u8) -> Result<(), Error> {
    fs::write(LIBERAL, setting.to_string()).map_err(|source| failed("writing", source))
}

fn failed(action: &'static str, source: io::Error) -> Error {
    Error::File { action, path: PathBuf::from(LIBERAL), source }
}
