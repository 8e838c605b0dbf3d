//! What contexts of programs at interfaces have in common.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_fib_lookup as Query;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::TcContext;
use podnet_common::tables::NextHop;

use crate::fib::{self, BPF_FIB_LKUP_RET_NO_NEIGH};
use crate::maps::XDP_INTERFACES;
use crate::xdp::Card;

/// The context of a program at an interface.
pub(crate) trait Door: EbpfContext {
    /// The interface at which the packet is met.
    fn interface(&self) -> u32;

    /// The cookie of the socket that sends the packet; 0 if no socket of this machine does.
    fn cookie(&self) -> u64;

    /// Where the packet goes next, by what the routing table has said and `answered`; `None` if it cannot from here.
    fn next_hop(&self, answered: i64, answer: &Query) -> Option<NextHop>;
}

impl Door for TcContext {
    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: a field of the context.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: a helper on this program's own context.
        unsafe { bpf_get_socket_cookie(self.as_ptr()) }
    }

    #[inline(always)]
    fn next_hop(&self, answered: i64, answer: &Query) -> Option<NextHop> {
        // Who the next hop is will be found out when the packet is sent.
        matches!(answered, 0 | BPF_FIB_LKUP_RET_NO_NEIGH)
            .then_some(NextHop { interface: answer.ifindex, addresses: None })
    }
}

impl Door for Card<'_> {
    #[inline(always)]
    fn interface(&self) -> u32 {
        self.interface
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        0
    }

    #[inline(always)]
    fn next_hop(&self, answered: i64, answer: &Query) -> Option<NextHop> {
        let interface = answer.ifindex;
        // SAFETY: nothing is read of the element.
        let reachable = interface == self.interface() || unsafe { XDP_INTERFACES.get(interface).is_some() };
        (answered == 0 && reachable)
            .then(|| NextHop { interface, addresses: Some(fib::frame_addresses(answer)) })
    }
}
