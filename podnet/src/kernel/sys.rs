//! System calls that aya has no functions for.
#![expect(unsafe_code, reason = "bpf(2) and getsockopt(2) take pointers")]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::programs::ProgramFd;
use nix::libc;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

/// `struct { ... } batch` of `union bpf_attr` (include/uapi/linux/bpf.h).
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct PathAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// bpf(2).
///
/// # Safety
/// `attr` must be the structure of `command`, and its pointers valid for what the kernel does with them.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i64> {
    // SAFETY: the caller vouches for the attribute; the kernel reads `size_of::<T>()` bytes of it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("open descriptors are not negative")
}

/// Writes `count` entries whose keys and values lie behind each other, each by `elem_flags`.
///
/// # Errors
/// The number of entries written, and the system's error for the one after them.
pub(super) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
    elem_flags: u64,
) -> Result<(), (u32, io::Error)> {
    let mut attr = BatchAttr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map_fd: raw(map),
        elem_flags,
        ..BatchAttr::default()
    };
    // SAFETY: the caller's slices hold `count` keys and values of the map's sizes; the kernel reads them.
    unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }.map(drop).map_err(|error| (attr.count, error))
}

/// Removes `count` keys that lie behind each other.
///
/// # Errors
/// The number of entries removed, and the system's error for the one after them.
pub(super) fn delete_batch(map: BorrowedFd<'_>, keys: &[u8], count: u32) -> Result<(), (u32, io::Error)> {
    let mut attr = BatchAttr { keys: keys.as_ptr() as u64, count, map_fd: raw(map), ..BatchAttr::default() };
    // SAFETY: the caller's slice holds `count` keys of the map's size; the kernel reads them.
    unsafe { bpf(BPF_MAP_DELETE_BATCH, &mut attr) }.map(drop).map_err(|error| (attr.count, error))
}

/// Where a batched walk through a map stands; opaque, and for all map types at most a key long.
pub(super) struct Cursor(Option<[u8; 64]>);

impl Cursor {
    pub(super) const fn start() -> Self {
        Self(None)
    }
}

/// What a step of a walk has brought.
pub(super) enum Step {
    /// So many entries, and there may be more.
    More(u32),
    /// So many entries, the last.
    End(u32),
}

/// Reads at most `count` entries into `keys` and `values`.
///
/// # Errors
/// The system's; `ENOSPC` when a hash bucket holds more than `count` entries.
pub(super) fn lookup_batch(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<Step> {
    let mut next = [0_u8; 64];
    let mut attr = BatchAttr {
        in_batch: cursor.0.as_ref().map_or(0, |at| at.as_ptr() as u64),
        out_batch: next.as_mut_ptr() as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count,
        map_fd: raw(map),
        ..BatchAttr::default()
    };
    // SAFETY: the caller's slices have room for `count` keys and values of the map's sizes, and the
    // cursors for any key of podnet's maps.
    match unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) } {
        Ok(_) => {
            cursor.0 = Some(next);
            Ok(Step::More(attr.count))
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Step::End(attr.count)),
        Err(error) => Err(error),
    }
}

/// Opens what is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PathAttr { pathname: path.as_ptr() as u64, ..PathAttr::default() };
    // SAFETY: the path is a string that ends in a zero; the result is a new descriptor.
    unsafe {
        let fd = bpf(BPF_OBJ_GET, &mut attr)?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?))
    }
}

/// Makes `link` run `program` from its next packet or call on.
pub(super) fn replace_program(link: BorrowedFd<'_>, program: &ProgramFd) -> io::Result<()> {
    let mut attr =
        LinkUpdateAttr { link_fd: raw(link), new_prog_fd: raw(program.as_fd()), ..LinkUpdateAttr::default() };
    // SAFETY: no pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes the program of `link` from where it is attached (Linux 5.9). Without its last pin and descriptor a link goes
/// too, but some time after they do.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut link = raw(link);
    // SAFETY: the attribute is the descriptor alone, no pointers.
    unsafe { bpf(BPF_LINK_DETACH, &mut link) }.map(drop)
}

/// The cookie of the calling thread's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("[::]:0"))?;
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the option's value is a u64, and so is the place for it.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// The magic number of the file system that `path` is on (statfs(2)).
pub(super) fn file_system(path: &Path) -> io::Result<i64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: all zeroes are a `statfs`; the path ends in a zero.
    unsafe {
        let mut stat: libc::statfs = zeroed();
        if libc::statfs(path.as_ptr(), &raw mut stat) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stat.f_type)
    }
}
