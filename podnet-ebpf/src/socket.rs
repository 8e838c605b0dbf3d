//! The door to socket calls.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use podnet_common::socket::{self, Caller, Verdict};
use podnet_common::verdict::Layer;
use podnet_common::wire::{Addr, Be16, Be32, Endpoint, Protocol};

use crate::maps::{NODE_NETNS, SOCKET_NETNS};
use crate::report;
use crate::tables::KernelTables;

const ALLOW: i32 = 1;
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// A socket call of one address family.
pub(crate) trait Call {
    /// The context.
    fn context(&self) -> &SockAddrContext;
    /// The peer's address.
    fn addr(&self) -> Addr;
    /// Changes the peer's address.
    fn set_addr(&self, addr: Addr);

    /// The raw context, whose fields the verifier turns into accesses of the kernel's own structures.
    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.context().sock_addr
    }

    /// The peer.
    #[inline(always)]
    fn endpoint(&self) -> Endpoint {
        // SAFETY: a field of the context; the port's two bytes are the lower ones, in network order.
        let port = unsafe { (*self.raw()).user_port };
        Endpoint { addr: self.addr(), port: Be16::from_raw(port as u16) }
    }

    /// Changes the peer.
    #[inline(always)]
    fn lead_to(&self, endpoint: Endpoint) {
        self.set_addr(endpoint.addr);
        // SAFETY: as above; the kernel takes only writes of four bytes.
        unsafe { (*self.raw()).user_port = u32::from(endpoint.port.raw()) };
    }

    /// The socket's transport protocol.
    #[inline(always)]
    fn protocol(&self) -> Protocol {
        // SAFETY: a field of the context.
        Protocol(unsafe { (*self.raw()).protocol } as u8)
    }

    /// Whether podnet is to leave the sockets of this network namespace alone.
    #[inline(always)]
    fn elsewhere(&self) -> bool {
        let only = SOCKET_NETNS.load();
        only != 0 && Socket(self.context()).netns() != only
    }
}

/// The socket that a call is made on.
struct Socket<'a>(&'a SockAddrContext);

impl Caller for Socket<'_> {
    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: a helper on this program's own context.
        unsafe { bpf_get_socket_cookie(self.0.as_ptr()) }
    }

    #[inline(always)]
    fn netns(&self) -> u64 {
        // SAFETY: a helper on this program's own context.
        unsafe { bpf_get_netns_cookie(self.0.as_ptr()) }
    }

    #[inline(always)]
    fn on_node(&self) -> bool {
        self.netns() == NODE_NETNS.load()
    }
}

/// A call on an IPv4 address.
pub(crate) struct V4<'a>(pub(crate) &'a SockAddrContext);

/// A call on an IPv6 address.
pub(crate) struct V6<'a>(pub(crate) &'a SockAddrContext);

impl Call for V4<'_> {
    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: a field of the context.
        Addr::v4(Be32::from_raw(unsafe { (*self.raw()).user_ip4 }))
    }

    #[inline(always)]
    fn set_addr(&self, addr: Addr) {
        // SAFETY: a field of the context that this program type may write.
        unsafe { (*self.raw()).user_ip4 = addr.last_word().raw() };
    }
}

impl Call for V6<'_> {
    #[inline(always)]
    fn context(&self) -> &SockAddrContext {
        self.0
    }

    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: a field of the context.
        Addr::from_words(unsafe { (*self.raw()).user_ip6 }.map(Be32::from_raw))
    }

    #[inline(always)]
    fn set_addr(&self, addr: Addr) {
        let [a, b, c, d] = addr.words();
        // SAFETY: a field of the context that this program type may write.
        unsafe { (*self.raw()).user_ip6 = [a.raw(), b.raw(), c.raw(), d.raw()] };
    }
}

/// Answers `connect()`.
#[inline(always)]
pub(crate) fn connect<C: Call>(call: &C) -> i32 {
    if call.elsewhere() {
        return ALLOW;
    }
    let context = call.context();
    finish(
        call,
        socket::connect(&mut KernelTables(context), &Socket(context), call.endpoint(), call.protocol()),
    )
}

/// Answers a datagram's departure.
#[inline(always)]
pub(crate) fn send<C: Call>(call: &C) -> i32 {
    if call.elsewhere() {
        return ALLOW;
    }
    let context = call.context();
    finish(call, socket::send(&mut KernelTables(context), &Socket(context), call.endpoint(), call.protocol()))
}

/// Answers a datagram's arrival. The kernel lets such programs do no other than allow.
#[inline(always)]
pub(crate) fn receive<C: Call>(call: &C) -> i32 {
    let context = call.context();
    rename(
        call,
        socket::receive(&KernelTables(context), Socket(context).cookie(), call.endpoint(), call.protocol()),
    )
}

/// Answers `getpeername()`; likewise.
#[inline(always)]
pub(crate) fn peer_name<C: Call>(call: &C) -> i32 {
    let context = call.context();
    rename(
        call,
        socket::peer_name(&KernelTables(context), Socket(context).cookie(), call.endpoint(), call.protocol()),
    )
}

#[inline(always)]
fn rename<C: Call>(call: &C, verdict: Verdict) -> i32 {
    if let Verdict::Lead(endpoint, reason) = verdict {
        report::count(Layer::Stack, reason);
        call.lead_to(endpoint);
    }
    ALLOW
}

#[inline(always)]
fn finish<C: Call>(call: &C, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => ALLOW,
        Verdict::Lead(endpoint, reason) => {
            report::count(Layer::Stack, reason);
            call.lead_to(endpoint);
            ALLOW
        }
        Verdict::Refuse(reason) => {
            report::count(Layer::Stack, reason);
            // SAFETY: a helper that notes what the system call returns; without it that were EPERM.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            DENY
        }
    }
}
