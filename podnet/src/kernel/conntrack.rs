//! The kernel's own connection tracking, which sees only the beginning and the end of flows that take short
//! cuts.

use std::fs;
use std::path::Path;

use super::error::Error;

/// Whether segments outside the window are what a connection may send (1), or INVALID (0); see
/// Documentation/networking/nf_conntrack-sysctl.rst.
const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

/// Has the kernel take the end of a connection for its end though most of its segments went past: many
/// network plugins have rules that drop what is INVALID. Where nothing is tracked there is nothing to do.
///
/// # Errors
/// When the kernel's setting cannot be written.
pub fn tolerate_short_cuts() -> Result<(), Error> {
    let path = Path::new(LIBERAL);
    if !path.exists() {
        return Ok(());
    }
    fs::write(path, "1").map_err(|source| Error::File { action: "writing", path: path.to_owned(), source })
}
