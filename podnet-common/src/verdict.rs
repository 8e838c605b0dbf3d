//! What became of a packet or a socket call, and why.

/// Where a packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided yet: [`route::rest`](crate::route::rest) does.
    Rest,
    /// Not decided yet: [`route::sctp`](crate::route::sctp) does.
    Sctp,
    /// Not decided yet: [`route::open`](crate::route::open) does.
    Open,
    /// Not decided yet: [`route::renew`](crate::route::renew) does.
    Renew,
    /// Not decided yet: [`route::complain`](crate::route::complain) does.
    Complain,
    /// Not decided yet: [`dns::answer`](crate::dns::answer) does.
    Query,
    /// Not answered, for this reason, and not decided yet: [`route::unanswered`](crate::route::unanswered) does.
    Unanswered(Reason),
    /// Not decided here: as it is into the node's stack, where [`route::route`](crate::route::route) does.
    Leave,
    /// On its way, untouched.
    Pass(Reason),
    /// On its way, translated.
    Translated(Reason),
    /// Back out of the interface it came in by.
    Return(Reason),
    /// Out of the interface with this index, to the next hop on its way.
    Forward(u32, Reason),
    /// To the pod behind the interface with this index, past the node's stack.
    ShortCut(u32, Reason),
    /// Into the node by the interface with this index, as if it had come in there.
    Inject(u32, Reason),
    /// Nowhere.
    Drop(Reason),
}

impl Verdict {
    /// Why.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Rest
            | Self::Sctp
            | Self::Open
            | Self::Renew
            | Self::Complain
            | Self::Query
            | Self::Leave => Reason::NotService,
            Self::Pass(reason)
            | Self::Unanswered(reason)
            | Self::Translated(reason)
            | Self::Return(reason)
            | Self::Forward(_, reason)
            | Self::ShortCut(_, reason)
            | Self::Inject(_, reason)
            | Self::Drop(reason) => reason,
        }
    }
}

/// Where a verdict was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Layer {
    /// In the node's stack: where packets enter and leave it, and at sockets.
    Stack,
    /// At a network card, by XDP.
    Xdp,
    /// Where queries of pods are answered: those that are not are counted in the stack once more.
    Dns,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stack, Self::Xdp, Self::Dns];

    /// How many they are.
    #[expect(clippy::cast_possible_truncation, reason = "three")]
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The name in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stack => "stack",
            Self::Xdp => "xdp",
            Self::Dns => "dns",
        }
    }

    /// Where in the kernel's counter table it is counted how often `reason` was given here.
    #[inline(always)]
    pub const fn counter(self, reason: Reason) -> u32 {
        self as u32 * Reason::COUNT + reason as u32
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// Why a verdict was given. The one list of counters: a variant's number is its place in the
        /// kernel's counter table, its label names it in metrics, and its text in `podnet status`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// How many there are.
            #[expect(clippy::cast_possible_truncation, reason = "a few dozen")]
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The name in metrics.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+),)+ }
            }
        }
    };
}

reasons! {
    /// not an IPv4 or IPv6 packet: passed
    NotIp = "not_ip",
    /// neither TCP, UDP nor SCTP: passed
    OtherProtocol = "other_protocol",
    /// a fragment: passed
    Fragment = "fragment",
    /// ends before its headers do: passed
    Truncated = "truncated",
    /// an IP header that contradicts itself: passed
    Malformed = "malformed",
    /// not to a Service address: passed
    NotService = "not_service",
    /// in the middle of a TCP connection that podnet did not open: passed
    MidConnection = "mid_connection",
    /// a fragment of a packet whose first one was translated: sent after it
    FollowingFragment = "following_fragment",
    /// a fragment that has come before the first one of its packet: looked at again
    FragmentWaits = "fragment_waits",
    /// the first packet of a flow: sent to the backend chosen for it
    NewFlow = "new_flow",
    /// a packet of a known flow: sent to its backend
    Established = "established",
    /// a backend's answer: sent to the client as the Service's
    Reply = "reply",
    /// a datagram or a SYN of a flow whose backend is gone, or no longer for it: sent to another one
    Moved = "moved",
    /// to a Service without endpoints: refused
    NoEndpoints = "no_endpoints",
    /// to a port that no Service has at a ClusterIP: refused
    NoPort = "no_port",
    /// to be answered by a refusal or an ICMP error, when many others are: dropped
    TooManyRefusals = "too_many_refusals",
    /// to a Service that may only use endpoints on this node, and none is: dropped
    NoneLocal = "none_local",
    /// to a load balancer's address, from a source outside its ranges: dropped
    SourceRange = "source_range",
    /// to an address of the Services' networks that no Service has: dropped
    Unassigned = "unassigned",
    /// of a TCP connection whose backend is gone: reset
    BackendGone = "backend_gone",
    /// no route leads to the backend or back to the client: dropped
    NoRoute = "no_route",
    /// at the end of its time to live: its sender is told, an ICMP error or a later fragment is dropped
    Expired = "expired",
    /// the backend already has a connection from this address and port: dropped
    Collision = "collision",
    /// all source ports tried for a masqueraded connection are in use: dropped
    SourcePorts = "source_ports",
    /// the flow table takes no more: dropped
    FlowTableFull = "flow_table_full",
    /// connect() to a Service: led to a backend
    SocketConnect = "socket_connect",
    /// a datagram of an unconnected socket to a Service: led to a backend
    SocketSend = "socket_send",
    /// a datagram from a backend: shown as the Service's
    SocketReceive = "socket_receive",
    /// getpeername() of a socket led to a backend: answered with the Service's address
    SocketPeer = "socket_peer",
    /// connect() or a datagram to a Service without endpoints: refused
    SocketRefused = "socket_refused",
    /// an ICMP error about a packet of a known flow: translated as the flow is
    IcmpError = "icmp_error",
    /// a later fragment of a packet whose first one was not seen: passed
    FragmentAlone = "fragment_alone",
    /// a fragment of an SCTP packet, whose checksum could not be mended: passed
    SctpFragment = "sctp_fragment",
    /// a frame of a VLAN, which is an interface of its own, or with a second tag: passed
    Tagged = "tagged",
    /// larger than the way to the backend or back to the client takes: its sender is told what that takes, an ICMP
    /// error or a later fragment is dropped
    TooBig = "too_big",
    /// a query for a Service's addresses: answered
    DnsAnswered = "dns_answered",
    /// a query for a name of the cluster's domain that nothing has: denied
    DnsNoName = "dns_no_name",
    /// a query for what a Service has none of: denied
    DnsNoData = "dns_no_data",
    /// to the port of DNS, but not of the cluster's: passed
    DnsOtherServer = "dns_other_server",
    /// a query of somebody who is to have no answers from here: passed
    DnsClient = "dns_client",
    /// a query of an unusual form: passed
    DnsUnusual = "dns_unusual",
    /// a query for what is not known here of any name: passed
    DnsType = "dns_type",
    /// a query for a name outside the cluster's domain: passed
    DnsOtherZone = "dns_other_zone",
    /// a query for a name of which not all is known here: passed
    DnsUnknown = "dns_unknown",
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reasons_number_is_its_place_in_the_list() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
