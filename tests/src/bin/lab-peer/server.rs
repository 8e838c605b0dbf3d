//! The servers of the lab.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tests::protocol::{Greeting, check_stream, send_stream};

/// Serves TCP and UDP of both families at `port`, and prints a line when it does.
pub(crate) fn start(name: &str, port: u16) -> Result<()> {
    // Sockets of `::` take IPv4 too.
    let listener = TcpListener::bind(("::", port)).context("cannot listen")?;
    let socket = UdpSocket::bind(("::", port)).context("cannot bind")?;
    let (tcp, udp) = (name.to_owned(), name.to_owned());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let name = tcp.clone();
            thread::spawn(move || serve_connection(&name, &stream));
        }
    });
    thread::spawn(move || serve_datagrams(&udp, &socket));
    println!("ready");
    Ok(())
}

fn serve_connection(name: &str, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let client = canonical(stream.peer_addr()?);
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let words: Vec<_> = line.split_whitespace().collect();
        let number = |index: usize| words.get(index).and_then(|word| word.parse().ok()).unwrap_or(0);
        match words.first() {
            Some(&"who") => answer(stream, &Greeting { server: name.to_owned(), client })?,
            Some(&"sink") => {
                let result = check_stream(&mut reader, number(1), number(2));
                answer(stream, &result.map_err(|error| error.to_string()))?;
            }
            Some(&"source") => send_stream(&mut &*stream, number(1), number(2))?,
            _ => return Ok(()),
        }
        line.clear();
    }
    Ok(())
}

fn answer(mut stream: &TcpStream, answer: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn serve_datagrams(name: &str, socket: &UdpSocket) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        // Errors are about clients that went away.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let greeting = Greeting { server: name.to_owned(), client: canonical(from) };
            if let Ok(mut bytes) = serde_json::to_vec(&greeting) {
                bytes.push(b'\n');
                bytes.extend_from_slice(&buffer[..length]);
                let _ = socket.send_to(&bytes, from);
            }
        }
    }
}

/// The address without the disguise that IPv4 has on sockets of `::`.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
