//! Programs that measure the others, in an object of their own (`cargo xtask bench xdp`).
//!
//! The kernel runs a program many times over one frame, which the first run has translated: the second one would meet
//! a frame that is nobody's. So a driver goes first, which makes the frame what it was, of the next flow, and leaves it
//! to the program under test. What the driver takes by itself is told by one that does nothing.

use aya_ebpf::bindings::{BPF_ANY, xdp_action};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, LruHashMap, ProgramArray};
use aya_ebpf::programs::XdpContext;
use podnet_common::checksum::Delta;
use podnet_common::frame::Frame as _;
use podnet_common::packet::{ETHERNET, ETHERTYPE_IPV4, IPV4};
use podnet_common::service::FrontendKey;
use podnet_common::wire::{Addr, Be16, Be32, Endpoint, Protocol};

use crate::maps::FRONTENDS;
use crate::xdp::XdpFrame;

/// How many bytes of a frame are restored.
const LENGTH: usize = 96;

/// What the driver makes of frames: written by user space, but for `next`.
#[repr(C)]
pub(crate) struct Course {
    /// The frame, of the first flow and the first service.
    frame: [u64; LENGTH / 8],
    /// The number of the next flow.
    next: u64,
    /// Which bits of that count: the number of flows, which is a power of two, less one.
    mask: u64,
    /// How many services there are.
    services: u64,
    /// Whether flows come by chance, not one after the other.
    random: u32,
    /// Whether the frame is of IPv6.
    v6: u32,
}

#[map]
static COURSE: Array<Course> = Array::with_max_entries(1, 0);

/// The program under test.
#[map]
static SUBJECT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Flows for [`floor_flow`], by what a five-tuple of IPv4 is made of.
#[map]
static FLOOR: LruHashMap<[u32; 4], [u32; 2]> = LruHashMap::with_max_entries(1 << 20, 0);

/// Makes a frame of the next flow, and leaves it to the program under test.
#[xdp]
pub fn driver(ctx: XdpContext) -> u32 {
    let Some(course) = COURSE.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: the element is there for as long as the map, and nobody else uses it meanwhile.
    let course = unsafe { &mut *course };
    // SAFETY: a helper without arguments.
    let number = if course.random != 0 { u64::from(unsafe { bpf_get_prandom_u32() }) } else { course.next };
    course.next += 1;
    if restore(&mut XdpFrame(&ctx), course, number & course.mask).is_some() {
        // SAFETY: nothing here is to be dropped. A call that comes back has found no program.
        unsafe { SUBJECT.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

/// A client's address and port are told by the flow's number, the service's by what is left of it.
#[inline(always)]
fn restore(frame: &mut XdpFrame<'_>, course: &Course, number: u64) -> Option<()> {
    frame.store(0, course.frame)?;
    let (client, service) = (number as u32, number.checked_rem(course.services)? as u32);
    let port = Be16::new(1024 + (client >> 16) as u16);
    if course.v6 == 0 {
        vary(frame, ETHERNET + 12, client & 0xffff)?;
        vary(frame, ETHERNET + 16, service)?;
        frame.store(ETHERNET + IPV4, port)
    } else {
        vary(frame, ETHERNET + 20, client & 0xffff)?;
        vary(frame, ETHERNET + 36, service)?;
        frame.store(ETHERNET + 40, port)
    }
}

/// Adds `number` to the address whose last word is at `offset`.
#[inline(always)]
fn vary(frame: &mut XdpFrame<'_>, offset: usize, number: u32) -> Option<()> {
    let word: Be32 = frame.load(offset)?;
    frame.store(offset, Be32::new(word.get().wrapping_add(number)))
}

/// Does nothing: what the driver takes.
#[xdp]
pub fn nothing(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// What a frame of TCP over IPv4 is from and to, by fixed places.
#[inline(always)]
fn parse(frame: &XdpFrame<'_>) -> Option<[u32; 4]> {
    let ethertype: Be16 = frame.load(12)?;
    let first: u8 = frame.load(ETHERNET)?;
    let protocol: Protocol = frame.load(ETHERNET + 9)?;
    if ethertype != ETHERTYPE_IPV4 || first != 0x45 || protocol != Protocol::TCP {
        return None;
    }
    let [source, destination]: [u32; 2] = frame.load(ETHERNET + 12)?;
    Some([source, destination, frame.load(ETHERNET + IPV4)?, protocol.0.into()])
}

/// The least that any program does: reads a frame's headers.
#[xdp]
pub fn floor_parse(ctx: XdpContext) -> u32 {
    match parse(&XdpFrame(&ctx)) {
        Some(_) => xdp_action::XDP_TX,
        None => xdp_action::XDP_PASS,
    }
}

/// The same, and asks a hash table whether the destination is a service's.
#[xdp]
pub fn floor_lookup(ctx: XdpContext) -> u32 {
    let Some([_, destination, ports, _]) = parse(&XdpFrame(&ctx)) else { return xdp_action::XDP_ABORTED };
    let at =
        Endpoint { addr: Addr::v4(Be32::from_raw(destination)), port: Be16::from_raw((ports >> 16) as u16) };
    // SAFETY: nothing is read of the element.
    match unsafe { FRONTENDS.get(FrontendKey::new(at, Protocol::TCP)) } {
        Some(_) => xdp_action::XDP_TX,
        None => xdp_action::XDP_PASS,
    }
}

/// The least that a load balancer does that remembers flows: one look-up in an LRU table, another destination, and the
/// checksums. A flow that is not there is written, and stays.
#[xdp]
pub fn floor_flow(ctx: XdpContext) -> u32 {
    translate(&mut XdpFrame(&ctx)).unwrap_or(xdp_action::XDP_ABORTED)
}

#[inline(always)]
fn translate(frame: &mut XdpFrame<'_>) -> Option<u32> {
    let tuple = parse(frame)?;
    // SAFETY: copied at once.
    let Some([address, port]) = (unsafe { FLOOR.get(tuple).copied() }) else {
        FLOOR.insert(tuple, [0x0100_800a, 0x901f], u64::from(BPF_ANY)).ok()?;
        return Some(xdp_action::XDP_PASS);
    };
    let old_port: Be16 = frame.load(ETHERNET + IPV4 + 2)?;
    let new_port = Be16::from_raw(port as u16);
    frame.store(ETHERNET + 16, address)?;
    frame.store(ETHERNET + IPV4 + 2, new_port)?;
    let addresses = Delta::NONE.double_word(tuple[1], address);
    let header: Be16 = frame.load(ETHERNET + 10)?;
    frame.store(ETHERNET + 10, addresses.apply(header))?;
    let sum: Be16 = frame.load(ETHERNET + IPV4 + 16)?;
    frame.store(ETHERNET + IPV4 + 16, addresses.word(old_port, new_port).apply(sum))?;
    Some(xdp_action::XDP_TX)
}
