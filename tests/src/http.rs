//! What an HTTP server answers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, ensure};

use crate::process::Place;
use crate::wait::PATIENCE;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Its code.
    pub code: u16,
    /// The lines of its headers, in lower case.
    pub headers: Vec<String>,
    /// Its body.
    pub body: String,
}

/// Asks the server at `address` for `path` from `place`.
///
/// # Errors
/// If there is no server, or none of HTTP.
pub fn get(place: &Place, address: SocketAddr, path: &str) -> Result<Answer> {
    place.netns.run(|| {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        parse(&text).with_context(|| format!("not HTTP: {text}"))
    })
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let code = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Answer { code, headers: lines.map(str::to_ascii_lowercase).collect(), body: body.to_owned() })
}

impl Answer {
    /// Holds the answer against a code and headers, as in `content-type: text/plain`.
    ///
    /// # Errors
    /// If it differs.
    pub fn is(&self, code: u16, headers: &[&str]) -> Result<()> {
        ensure!(self.code == code, "{} in place of {code}: {self:?}", self.code);
        for header in headers {
            ensure!(self.headers.iter().any(|it| it == header), "no {header:?} in {self:?}");
        }
        Ok(())
    }
}
