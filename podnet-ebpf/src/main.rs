//! podnet in the kernel: entry points, and nothing that decides.
//!
//! Each program opens the doors (`frame`, `tables`, `socket`), asks the packet core, counts the reason and
//! turns the verdict into the kernel's return code.
#![no_std]
#![no_main]

#[cfg(feature = "bench")]
mod bench;
mod door;
mod fib;
mod frame;
mod maps;
mod names;
mod report;
mod socket;
mod tables;
mod xdp;

use aya_ebpf::bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::generated::{bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::macros::{cgroup_sock_addr, classifier, xdp};
use aya_ebpf::programs::{SockAddrContext, TcContext, XdpContext};
use podnet_common::abi::Program;
use podnet_common::dns;
use podnet_common::early;
use podnet_common::route::{self, Hook};
use podnet_common::verdict::{Layer, Verdict};

use crate::frame::Skb;
use crate::maps::{PROGRAMS, XDP_PROGRAMS};
use crate::tables::KernelTables;
use crate::xdp::{Card, XdpFrame};

/// Runs at the ingress of interfaces that face pods: what pods send.
#[classifier]
#[inline(always)]
pub fn from_pod(ctx: TcContext) -> i32 {
    route(&ctx, Hook::FromPod)
}

/// Runs at the egress of interfaces that face pods: what pods are sent.
#[classifier]
#[inline(always)]
pub fn to_pod(ctx: TcContext) -> i32 {
    route(&ctx, Hook::ToPod)
}

/// Runs at the ingress of interfaces that face other machines: what they send to this node.
#[classifier]
#[inline(always)]
pub fn from_net(ctx: TcContext) -> i32 {
    route(&ctx, Hook::FromNet)
}

/// Runs at the egress of interfaces that face other machines: what they are sent.
#[classifier]
#[inline(always)]
pub fn to_net(ctx: TcContext) -> i32 {
    route(&ctx, Hook::ToNet)
}

/// Runs after `from_pod` for fragments and ICMP errors.
#[classifier]
#[inline(always)]
pub fn from_pod_rest(ctx: TcContext) -> i32 {
    rest(&ctx, Hook::FromPod)
}

/// Runs after `to_pod` likewise.
#[classifier]
#[inline(always)]
pub fn to_pod_rest(ctx: TcContext) -> i32 {
    rest(&ctx, Hook::ToPod)
}

/// Runs after `from_net` likewise.
#[classifier]
#[inline(always)]
pub fn from_net_rest(ctx: TcContext) -> i32 {
    rest(&ctx, Hook::FromNet)
}

/// Runs after `to_net` likewise.
#[classifier]
#[inline(always)]
pub fn to_net_rest(ctx: TcContext) -> i32 {
    rest(&ctx, Hook::ToNet)
}

/// Runs after `from_pod` for SCTP.
#[classifier]
#[inline(always)]
pub fn from_pod_sctp(ctx: TcContext) -> i32 {
    sctp(&ctx, Hook::FromPod)
}

/// Runs after `to_pod` likewise.
#[classifier]
#[inline(always)]
pub fn to_pod_sctp(ctx: TcContext) -> i32 {
    sctp(&ctx, Hook::ToPod)
}

/// Runs after `from_net` likewise.
#[classifier]
#[inline(always)]
pub fn from_net_sctp(ctx: TcContext) -> i32 {
    sctp(&ctx, Hook::FromNet)
}

/// Runs after `to_net` likewise.
#[classifier]
#[inline(always)]
pub fn to_net_sctp(ctx: TcContext) -> i32 {
    sctp(&ctx, Hook::ToNet)
}

/// Runs after `from_pod` for packets that may open a flow.
#[classifier]
#[inline(always)]
pub fn from_pod_open(ctx: TcContext) -> i32 {
    open(&ctx, Hook::FromPod)
}

/// Runs after `from_net` likewise.
#[classifier]
#[inline(always)]
pub fn from_net_open(ctx: TcContext) -> i32 {
    open(&ctx, Hook::FromNet)
}

/// Runs after `to_net` likewise.
#[classifier]
#[inline(always)]
pub fn to_net_open(ctx: TcContext) -> i32 {
    open(&ctx, Hook::ToNet)
}

/// Runs after `from_pod`, or those after it, for packets that cannot leave the node.
#[classifier]
#[inline(always)]
pub fn from_pod_complain(ctx: TcContext) -> i32 {
    complain(&ctx, Hook::FromPod)
}

/// Runs after `from_net` likewise.
#[classifier]
#[inline(always)]
pub fn from_net_complain(ctx: TcContext) -> i32 {
    complain(&ctx, Hook::FromNet)
}

/// Runs after `to_net` likewise.
#[classifier]
#[inline(always)]
pub fn to_net_complain(ctx: TcContext) -> i32 {
    complain(&ctx, Hook::ToNet)
}

/// Runs after `from_pod` for datagrams whose frontend is to be asked again.
#[classifier]
#[inline(always)]
pub fn from_pod_renew(ctx: TcContext) -> i32 {
    renew(&ctx, Hook::FromPod)
}

/// Runs after `from_net` likewise.
#[classifier]
#[inline(always)]
pub fn from_net_renew(ctx: TcContext) -> i32 {
    renew(&ctx, Hook::FromNet)
}

/// Runs after `to_net` likewise.
#[classifier]
#[inline(always)]
pub fn to_net_renew(ctx: TcContext) -> i32 {
    renew(&ctx, Hook::ToNet)
}

/// Runs after `from_pod` for queries: answers them, or leaves them to `from_pod_unanswered`.
#[classifier]
#[inline(always)]
pub fn from_pod_answer(ctx: TcContext) -> i32 {
    let Some(mut frame) = Skb::new(&ctx) else { return TC_ACT_UNSPEC };
    let verdict = dns::answer(&mut frame, &mut KernelTables(&ctx));
    report::count(Layer::Dns, verdict.reason());
    match verdict {
        Verdict::Unanswered(_) => leave_to(&ctx, Program::Unanswered),
        verdict => carry_out(&ctx, verdict),
    }
}

/// Runs after `from_pod_answer` for queries that were not answered.
#[classifier]
#[inline(always)]
pub fn from_pod_unanswered(ctx: TcContext) -> i32 {
    let Some(mut frame) = Skb::new(&ctx) else { return TC_ACT_UNSPEC };
    let verdict = route::unanswered(&mut frame, &mut KernelTables(&ctx));
    go_on(&ctx, Hook::FromPod, verdict)
}

/// Runs only for the agent and `podnet check`, which are told by it whether masquerading is possible here: 1, or 0.
#[classifier]
#[inline(always)]
pub fn can_masquerade(ctx: TcContext) -> i32 {
    i32::from(fib::tells_own_addresses(&ctx))
}

#[inline(always)]
fn route(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(mut frame) = Skb::new(ctx) else { return TC_ACT_UNSPEC };
    let verdict = route::route(hook, &mut frame, &mut KernelTables(ctx));
    go_on(ctx, hook, verdict)
}

#[inline(always)]
fn rest(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(mut frame) = Skb::new(ctx) else { return TC_ACT_UNSPEC };
    let verdict = route::rest(hook, &mut frame, &mut KernelTables(ctx));
    go_on(ctx, hook, verdict)
}

#[inline(always)]
fn sctp(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(mut frame) = Skb::new(ctx) else { return TC_ACT_UNSPEC };
    let verdict = route::sctp(hook, &mut frame, &mut KernelTables(ctx));
    go_on(ctx, hook, verdict)
}

#[inline(always)]
fn open(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(mut frame) = Skb::new(ctx) else { return TC_ACT_UNSPEC };
    let verdict = route::open(hook, &mut frame, &mut KernelTables(ctx));
    go_on(ctx, hook, verdict)
}

#[inline(always)]
fn renew(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(mut frame) = Skb::new(ctx) else { return TC_ACT_UNSPEC };
    let verdict = route::renew(hook, &mut frame, &mut KernelTables(ctx));
    go_on(ctx, hook, verdict)
}

#[inline(always)]
fn complain(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(mut frame) = Skb::new(ctx) else { return TC_ACT_UNSPEC };
    let verdict = route::complain(&mut frame, &mut KernelTables(ctx));
    go_on(ctx, hook, verdict)
}

/// Carries out a verdict, or has another program find one: programs of their own keep the code that nearly
/// all packets run through small.
#[inline(always)]
fn go_on(ctx: &TcContext, hook: Hook, verdict: Verdict) -> i32 {
    let program = match verdict {
        Verdict::Rest => Program::Rest(hook),
        Verdict::Sctp => Program::Sctp(hook),
        Verdict::Open => Program::Open(hook),
        Verdict::Renew => Program::Renew(hook),
        Verdict::Complain => Program::Complain(hook),
        Verdict::Query => Program::Answer,
        verdict => return finish(ctx, verdict),
    };
    leave_to(ctx, program)
}

#[inline(always)]
fn leave_to(ctx: &TcContext, program: Program) -> i32 {
    // SAFETY: nothing here is to be dropped. A call that comes back has found no program; the packet goes on.
    unsafe { PROGRAMS.tail_call(ctx, program.index()) };
    TC_ACT_UNSPEC
}

/// Carries out a verdict of the stack's.
#[inline(always)]
fn finish(ctx: &TcContext, verdict: Verdict) -> i32 {
    report::count(Layer::Stack, verdict.reason());
    carry_out(ctx, verdict)
}

/// "Unspecified" lets programs after this one, those of the CNI's, have their say.
#[inline(always)]
fn carry_out(ctx: &TcContext, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass(_)
        | Verdict::Translated(_)
        | Verdict::Rest
        | Verdict::Sctp
        | Verdict::Open
        | Verdict::Renew
        | Verdict::Complain
        | Verdict::Query
        | Verdict::Unanswered(_)
        | Verdict::Leave => TC_ACT_UNSPEC,
        Verdict::Drop(_) => TC_ACT_SHOT,
        // SAFETY: `skb` is the context of this program, and `ifindex` one of its fields; the helper only
        // notes where the packet goes.
        Verdict::Return(_) => unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) as i32 },
        // SAFETY: the helper only notes where the packet goes; without parameters it asks the routing table
        // for the next hop and sees to its MAC address.
        Verdict::Forward(interface, _) => unsafe {
            bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32
        },
        // SAFETY: as above; the kernel hands the packet to the peer of the interface.
        Verdict::ShortCut(interface, _) => unsafe { bpf_redirect_peer(interface, 0) as i32 },
        // SAFETY: as above.
        Verdict::Inject(interface, _) => unsafe { bpf_redirect(interface, u64::from(BPF_F_INGRESS)) as i32 },
    }
}

/// Runs before `from_net`, in the drivers of network cards: what other machines send to this node.
#[xdp(frags)]
pub fn from_net_xdp(ctx: XdpContext) -> u32 {
    early(&ctx)
}

/// Runs after `from_net_xdp` for packets that may open a flow.
#[xdp(frags)]
pub fn from_net_xdp_open(ctx: XdpContext) -> u32 {
    early_open(&ctx)
}

/// Does what `from_net_xdp` does, behind the drivers. A program for frames in pieces must not be there: Linux 6.18
/// makes another skb for one, which does not know how long its Ethernet header is, and hands it to `from_net` without
/// that.
#[xdp]
pub fn from_net_xdp_generic(ctx: XdpContext) -> u32 {
    early(&ctx)
}

/// Runs after `from_net_xdp_generic` likewise.
#[xdp]
pub fn from_net_xdp_generic_open(ctx: XdpContext) -> u32 {
    early_open(&ctx)
}

#[inline(always)]
fn early(ctx: &XdpContext) -> u32 {
    let card = Card::new(ctx);
    match early::early(&mut XdpFrame(ctx), &mut KernelTables(&card)) {
        Verdict::Open => {
            // SAFETY: nothing here is to be dropped. A call that comes back has found no program; the packet goes on.
            unsafe { XDP_PROGRAMS.tail_call(ctx, 0) };
            xdp_action::XDP_PASS
        }
        verdict => finish_early(&card, verdict),
    }
}

#[inline(always)]
fn early_open(ctx: &XdpContext) -> u32 {
    let card = Card::new(ctx);
    finish_early(&card, early::open(&mut XdpFrame(ctx), &mut KernelTables(&card)))
}

/// Carries out a verdict at a network card.
#[inline(always)]
fn finish_early(card: &Card<'_>, verdict: Verdict) -> u32 {
    let action = match verdict {
        Verdict::Translated(_) => xdp_action::XDP_PASS,
        Verdict::Forward(interface, _) if interface == card.interface => xdp_action::XDP_TX,
        // SAFETY: the helper only notes where the frame goes.
        Verdict::Forward(interface, _) => unsafe { bpf_redirect(interface, 0) as u32 },
        Verdict::Drop(_) => xdp_action::XDP_DROP,
        // It is counted where it is decided.
        _ => return xdp_action::XDP_PASS,
    };
    report::count(Layer::Xdp, verdict.reason());
    action
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
