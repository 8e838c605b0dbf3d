//! Questions in datagrams.

use std::sync::Arc;

use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tracing::debug;

use super::message::{Received, Transport};
use super::respond::Responder;

/// The longest datagram that is read.
const MAX_DATAGRAM: usize = 65_535;
/// How many questions may wait for other servers. What comes beyond that is dropped, and asked again by its client.
const MAX_WAITING: usize = 4096;

/// Answers what comes by a socket.
pub(super) async fn serve(socket: Arc<UdpSocket>, responder: Arc<Responder>) {
    let waiting = Arc::new(Semaphore::new(MAX_WAITING));
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error here is that of an earlier answer, whose client is gone.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let request = match Received::read(&buffer[..length]) {
            Received::Nothing => continue,
            Received::Odd(code, answer) => {
                responder.count_odd(code, Transport::Udp);
                send(&socket, &answer, client).await;
                continue;
            }
            Received::Question(request) => request,
        };
        if let Some(reply) = responder.known(&request, Transport::Udp) {
            send(&socket, &request.encode(&reply, Transport::Udp), client).await;
            continue;
        }
        let Ok(permit) = waiting.clone().try_acquire_owned() else { continue };
        let (socket, responder) = (socket.clone(), responder.clone());
        tokio::spawn(async move {
            let reply = responder.answer(&request, Transport::Udp).await;
            send(&socket, &request.encode(&reply, Transport::Udp), client).await;
            drop(permit);
        });
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], client: std::net::SocketAddr) {
    if let Err(error) = socket.send_to(answer, client).await {
        debug!(%client, %error, "an answer could not be sent");
    }
}
