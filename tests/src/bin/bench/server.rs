//! The server pod's process. Its UDP sockets are bound and, but for one greeting, not read: a datagram's way
//! ends in a full buffer, and the receiver costs nothing. Its TCP sockets answer one byte, or a stream.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Args;
use tests::protocol;

use crate::client::pin;

/// The ports that are served, each as an endpoint of its own.
pub(crate) const PORTS: [u16; 2] = [8080, 8081];
/// The request for one byte.
pub(crate) const ONE: u8 = b'1';
/// The request for a stream.
pub(crate) const STREAM: u8 = b's';
/// What a client says first on a socket that it will flood.
pub(crate) const HELLO: &[u8] = b"hello";

/// Serves until the input ends. A line of input makes it empty its UDP sockets, say `ready`, and answer the
/// next greeting.
#[derive(Args)]
pub(crate) struct Serve {
    /// The core to stay on.
    #[arg(long)]
    core: usize,
}

impl Serve {
    pub(crate) fn run(self) -> Result<()> {
        pin(self.core)?;
        let mut sockets = Vec::new();
        for port in PORTS {
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("cannot listen")?;
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // A client that breaks off says why itself.
                    let _ = answer(stream);
                }
            });
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).context("cannot bind")?;
            socket.set_nonblocking(true).context("cannot make a socket non-blocking")?;
            sockets.push(socket);
        }
        println!("ready");
        for line in io::stdin().lock().lines() {
            line.context("cannot read the input")?;
            for socket in &sockets {
                while socket.recv(&mut [0; 64]).is_ok() {}
            }
            println!("ready");
            greet(&sockets);
        }
        Ok(())
    }
}

/// Answers a greeting; a client that waits for the answer in vain says so itself.
fn greet(sockets: &[UdpSocket]) {
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        for socket in sockets {
            let mut buffer = [0; 64];
            if let Ok((length, from)) = socket.recv_from(&mut buffer)
                && &buffer[..length] == HELLO
            {
                let _ = socket.send_to(HELLO, from);
                return;
            }
        }
        thread::sleep(Duration::from_micros(100));
    }
}

fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0];
    stream.read_exact(&mut request)?;
    if request[0] == STREAM {
        let mut numbers = [0; 8];
        stream.read_exact(&mut numbers)?;
        let bytes = u64::from_be_bytes(numbers);
        protocol::check_stream(&mut stream, bytes, bytes)?;
        return protocol::send_stream(&mut stream, bytes, !bytes);
    }
    stream.write_all(&request)?;
    // The client closes first.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}
