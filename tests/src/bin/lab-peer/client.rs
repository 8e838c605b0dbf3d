//! The clients of the lab.

use std::fs;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect,
    recvmsg, setsockopt, socket, sockopt,
};
use tests::protocol::{
    Answer, Complaint, Failure, Greeting, Reply, Summary, check_stream, datagram, send_stream,
};

use crate::{Client, Transport};

/// Sends one request for each line of input, and prints what became of it.
pub(crate) fn converse(client: &Client) -> Result<()> {
    let mut session = None;
    for line in io::stdin().lines() {
        line.context("cannot read the input")?;
        print(&request(client, &mut session))?;
    }
    Ok(())
}

/// Sends requests until the input ends.
pub(crate) fn load(client: &Client, workers: u32, pause: Duration) -> Result<()> {
    let summary = Arc::new(Mutex::new(Summary::default()));
    let stop = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..workers)
        .map(|_| {
            let (client, summary, stop) = (client.clone(), Arc::clone(&summary), Arc::clone(&stop));
            thread::spawn(move || {
                let mut session = None;
                while !stop.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    let answer = request(&client, &mut session);
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    summary.add(&answer, millis(start));
                    drop(summary);
                    thread::sleep(pause);
                }
            })
        })
        .collect();
    let show = || print(&*summary.lock().unwrap_or_else(PoisonError::into_inner));
    for line in io::stdin().lines() {
        line.context("cannot read the input")?;
        show()?;
    }
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().map_err(|_| anyhow!("a worker panicked"))?;
    }
    show()
}

/// Sends and receives a stream of bytes, and prints what went wrong.
pub(crate) fn transfer(to: SocketAddr, bytes: u64) -> Result<()> {
    print(&exchange_streams(to, bytes).err().map(|error| error.to_string()))
}

fn exchange_streams(to: SocketAddr, bytes: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.set_write_timeout(Some(Duration::from_secs(20)))?;
    let (there, back) = (1, 2);
    writeln!(stream, "sink {bytes} {there}")?;
    send_stream(&mut stream, bytes, there)?;
    let mut verdict = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut verdict)?;
    if verdict.trim() != r#"{"Ok":null}"# {
        return Err(io::Error::other(format!("on the way there: {}", verdict.trim())));
    }
    writeln!(stream, "source {bytes} {back}")?;
    check_stream(&mut reader, bytes, back)
        .map_err(|error| io::Error::other(format!("on the way back: {error}")))
}

/// Sends a datagram that may pass `hops` routers, and prints the ICMP error that comes of it, if one does.
pub(crate) fn trace(to: SocketAddr, hops: u8, patience: Duration) -> Result<()> {
    let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
    let ttl = i32::from(hops);
    if to.is_ipv4() {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        setsockopt(&socket, sockopt::Ipv4Ttl, &ttl)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
        setsockopt(&socket, sockopt::Ipv6Ttl, &ttl)?;
    }
    socket.connect(to)?;
    socket.send(&datagram(64))?;
    let mut events = [PollFd::new(socket.as_fd(), PollFlags::POLLERR)];
    let millis = u16::try_from(patience.as_millis()).unwrap_or(u16::MAX);
    if poll(&mut events, millis)? == 0 {
        return print(&None::<Complaint>);
    }
    let mut space = nix::cmsg_space!([u8; 256]);
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut [], Some(&mut space), MsgFlags::MSG_ERRQUEUE)?;
    let complaint = message.cmsgs()?.find_map(|control| {
        let (error, from) = match control {
            ControlMessageOwned::Ipv4RecvErr(error, from) => {
                (error, from.map(|it| IpAddr::from(u32::from_be(it.sin_addr.s_addr).to_be_bytes())))
            }
            ControlMessageOwned::Ipv6RecvErr(error, from) => {
                (error, from.map(|it| IpAddr::from(it.sin6_addr.s6_addr)))
            }
            _ => return None,
        };
        Some(Complaint { from, kind: error.ee_type, code: error.ee_code })
    });
    print(&complaint)
}

/// A connection or socket that may serve several requests.
enum Session {
    Tcp(BufReader<TcpStream>),
    Udp(UdpSocket),
}

fn request(client: &Client, session: &mut Option<Session>) -> Answer {
    let start = Instant::now();
    let answer = attempt(client, session);
    if !client.keep || (answer.is_err() && client.transport == Transport::Tcp) {
        *session = None;
    }
    answer.map_err(|error| {
        let kind = match error.kind() {
            // What a read with a time limit says when it is over.
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut,
            kind => kind,
        };
        Failure { kind: format!("{kind:?}"), text: error.to_string(), millis: millis(start) }
    })
}

fn attempt(client: &Client, session: &mut Option<Session>) -> io::Result<Reply> {
    let session = match session {
        Some(session) => session,
        None => session.insert(open(client)?),
    };
    match session {
        Session::Tcp(reader) => {
            reader.get_mut().write_all(b"who\n")?;
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let stream = reader.get_ref();
            let local = stream.local_addr()?;
            let wire = wire(local);
            reply(line.as_bytes(), local, stream.peer_addr()?, wire)
        }
        Session::Udp(socket) => {
            let mut buffer = vec![0; 1 << 16];
            let connected = client.transport == Transport::ConnectedUdp;
            let request = datagram(client.size);
            if connected {
                socket.send(&request)?;
            } else {
                socket.send_to(&request, client.to)?;
            }
            let (length, from) = socket.recv_from(&mut buffer)?;
            let peer = if connected { socket.peer_addr()? } else { from };
            let line = buffer[..length].split(|byte| *byte == b'\n').next().unwrap_or_default();
            if buffer[..length].get(line.len() + 1..) != Some(&request) {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "the datagram came back as another"));
            }
            reply(line, socket.local_addr()?, peer, None)
        }
    }
}

fn reply(
    greeting: &[u8],
    local: SocketAddr,
    peer: SocketAddr,
    wire: Option<SocketAddr>,
) -> io::Result<Reply> {
    let Greeting { server, client } = serde_json::from_slice(greeting)?;
    Ok(Reply { server, client, local, peer, wire })
}

fn open(client: &Client) -> io::Result<Session> {
    let patience = client.patience();
    if client.transport == Transport::Tcp {
        let stream = match client.from {
            Some(from) => connect_from(from, client.to)?,
            None => TcpStream::connect_timeout(&client.to, patience)?,
        };
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        return Ok(Session::Tcp(BufReader::new(stream)));
    }
    let any = match client.to {
        SocketAddr::V4(_) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        SocketAddr::V6(_) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let socket = UdpSocket::bind(client.from.unwrap_or(any))?;
    socket.set_read_timeout(Some(patience))?;
    if client.transport == Transport::ConnectedUdp {
        socket.connect(client.to)?;
    }
    Ok(Session::Udp(socket))
}

/// A connection from an address of our choice, which the standard library does not offer.
fn connect_from(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

/// The peer, in the kernel's own table, of the connection from `local`.
fn wire(local: SocketAddr) -> Option<SocketAddr> {
    let file = if local.is_ipv4() { "/proc/thread-self/net/tcp" } else { "/proc/thread-self/net/tcp6" };
    const ESTABLISHED: &str = "01";
    fs::read_to_string(file).ok()?.lines().skip(1).find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let [_, own, peer, state, ..] = words[..] else { return None };
        (state == ESTABLISHED && address(own)? == local).then(|| address(peer))?
    })
}

/// Reads an address as the kernel prints it: words in the machine's byte order, in hexadecimal.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words: Option<Vec<[u8; 4]>> = (0..ip.len() / 8)
        .map(|word| Some(u32::from_str_radix(ip.get(word * 8..word * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(v4) => IpAddr::from(v4),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

fn print(value: &impl serde::Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(value)?);
    Ok(())
}
