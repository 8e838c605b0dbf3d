//! podnet in the kernel: entry points, and nothing that decides.
//!
//! Each program opens the doors (`frame`, `tables`, `socket`), asks the packet core, counts the reason and
//! turns the verdict into the kernel's return code.
#![no_std]
#![no_main]

mod fib;
mod frame;
mod maps;
mod report;
mod socket;
mod tables;

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh};
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};
use podnet_common::route;
use podnet_common::verdict::Verdict;

use crate::frame::Skb;
use crate::tables::KernelTables;

/// Runs at the ingress of interfaces that face pods: what pods send.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let Some(mut frame) = Skb::new(&ctx) else { return TC_ACT_UNSPEC };
    finish(&ctx, route::from_pod(&mut frame, &mut KernelTables(&ctx)))
}

/// Runs at the egress of interfaces that face pods: what pods are sent.
#[classifier]
pub fn to_pod(ctx: TcContext) -> i32 {
    let Some(mut frame) = Skb::new(&ctx) else { return TC_ACT_UNSPEC };
    finish(&ctx, route::to_pod(&mut frame, &mut KernelTables(&ctx)))
}

/// Runs at the ingress of interfaces that face other machines: what they send to this node.
#[classifier]
pub fn from_net(ctx: TcContext) -> i32 {
    let Some(mut frame) = Skb::new(&ctx) else { return TC_ACT_UNSPEC };
    finish(&ctx, route::from_net(&mut frame, &mut KernelTables(&ctx)))
}

/// Runs at the egress of interfaces that face other machines: what they are sent.
#[classifier]
pub fn to_net(ctx: TcContext) -> i32 {
    let Some(mut frame) = Skb::new(&ctx) else { return TC_ACT_UNSPEC };
    finish(&ctx, route::to_net(&mut frame, &mut KernelTables(&ctx)))
}

/// Carries out a verdict. "Unspecified" lets programs after this one, those of the CNI's, have their say.
#[inline(always)]
fn finish(ctx: &TcContext, verdict: Verdict) -> i32 {
    report::count(verdict.reason());
    match verdict {
        Verdict::Pass(_) | Verdict::Translated(_) => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        // SAFETY: `skb` is the context of this program, and `ifindex` one of its fields; the helper only
        // notes where the packet goes.
        Verdict::Return(_) => unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 },
        // SAFETY: the helper only notes where the packet goes; without parameters it asks the routing table
        // for the next hop and sees to its MAC address.
        Verdict::Forward(interface, _) => unsafe {
            bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32
        },
        // SAFETY: as above.
        Verdict::Inject(interface, _) => unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) as i32 },
    }
}

/// `connect()` of IPv4 sockets.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect(&socket::V4(&ctx))
}

/// `connect()` of IPv6 sockets, to IPv4-mapped addresses too.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect(&socket::V6(&ctx))
}

/// Datagrams of unconnected IPv4 sockets, and of IPv6 sockets to IPv4-mapped addresses.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::send(&socket::V4(&ctx))
}

/// Datagrams of unconnected IPv6 sockets.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::send(&socket::V6(&ctx))
}

/// The source of datagrams that IPv4 sockets receive.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::receive(&socket::V4(&ctx))
}

/// The source of datagrams that IPv6 sockets receive.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::receive(&socket::V6(&ctx))
}

/// `getpeername()` of IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::peer_name(&socket::V4(&ctx))
}

/// `getpeername()` of IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::peer_name(&socket::V6(&ctx))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this could be reached.
    loop {}
}

/// The kernel offers its helpers to programs under a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
#[expect(unsafe_code, reason = "the loader finds the licence by its section")]
static LICENSE: [u8; 4] = *b"GPL\0";
