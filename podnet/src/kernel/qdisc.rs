//! The clsact qdisc, which filters stand in: aya makes it, but neither looks at it nor removes it.

use std::io;

use nix::libc;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::sys::{Socket, protocols::NETLINK_ROUTE};

/// Removes the clsact qdisc of an interface, unless there are filters in it, which are somebody's. One that is
/// not there is fine.
pub(super) fn remove_if_unused(index: u32) -> io::Result<()> {
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        if has_filters(index, TcHandle { major: TcHandle::CLSACT.major, minor })? {
            return Ok(());
        }
    }
    let mut clsact = message(index, TcHandle::CLSACT)?;
    clsact.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    for reply in ask(RouteNetlinkMessage::DelQueueDiscipline(clsact), NLM_F_ACK)? {
        let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply).map_err(io::Error::other)?;
        if let NetlinkPayload::Error(error) = reply.payload
            && error.code.is_some()
        {
            let error = error.to_io();
            return match error.raw_os_error() {
                Some(libc::ENOENT | libc::EINVAL | libc::ENODEV) => Ok(()),
                _ => Err(error),
            };
        }
    }
    Ok(())
}

/// Whether there are filters in one of the two directions.
fn has_filters(index: u32, parent: TcHandle) -> io::Result<bool> {
    const RTM_NEWTFILTER: u16 = 44;
    let list = RouteNetlinkMessage::GetTrafficFilter(message(index, parent)?);
    let replies = ask(list, NLM_F_DUMP)?;
    if replies.iter().any(|reply| NetlinkBuffer::new(reply).message_type() == RTM_NEWTFILTER) {
        return Ok(true);
    }
    // That there are none is not what a list says that could not be made.
    for reply in replies {
        let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&reply).map_err(io::Error::other)?;
        match reply.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
            NetlinkPayload::Done(done) if done.code != 0 => {
                return Err(io::Error::from_raw_os_error(done.code.abs()));
            }
            _ => {}
        }
    }
    Ok(false)
}

fn message(index: u32, parent: TcHandle) -> io::Result<TcMessage> {
    let mut message = TcMessage::default();
    message.header.index = i32::try_from(index).map_err(io::Error::other)?;
    message.header.parent = parent;
    Ok(message)
}

/// What the kernel replies, each message with its header, up to the one that ends it.
fn ask(question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<Vec<u8>>> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    let mut question = NetlinkMessage::from(question);
    question.header.flags = NLM_F_REQUEST | flags;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.send(&bytes, 0)?;
    let mut replies = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while let Ok(header) = NetlinkBuffer::new_checked(rest) {
            let (kind, length) = (header.message_type(), header.length() as usize);
            replies.push(rest[..length].to_vec());
            if matches!(kind, NLMSG_ERROR | NLMSG_DONE) {
                return Ok(replies);
            }
            // Messages begin at multiples of four bytes.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}
