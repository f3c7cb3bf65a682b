//! A TCP proxy between clients and a broker, which can cut connections and make them half-open.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

/// A connection through the proxy.
struct Line {
    task: AbortHandle,
    /// Whether its bytes stop.
    held: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    lines: Vec<Line>,
}

/// Listens on loopback and passes bytes on until it is told not to. Ends when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Starts one to `target`, on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(target: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (held, watching) = watch::channel(false);
                let task = tokio::spawn(pass(client, target, watching)).abort_handle();
                let mut state = shared.lock().unwrap_or_else(PoisonError::into_inner);
                state.lines.retain(|line| !line.task.is_finished());
                state.lines.push(Line { task, held });
            }
        });
        Ok(Self { address, state, accepting })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections to both sides. New ones work.
    pub fn cut(&self) {
        let lines = std::mem::take(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner).lines);
        for line in lines {
            line.task.abort();
        }
    }

    /// From now on no byte of the connections there are arrives, and neither does their end. New ones work.
    pub fn half_open(&self) {
        for line in &self.state.lock().unwrap_or_else(PoisonError::into_inner).lines {
            line.held.send_replace(true);
        }
    }

    /// Closes the half-open ones. What was on its way is lost.
    pub fn heal(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.lines.retain(|line| {
            let held = *line.held.borrow();
            if held {
                line.task.abort();
            }
            !held
        });
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn pass(client: TcpStream, target: SocketAddr, held: watch::Receiver<bool>) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(one_way(from_client, to_server, held.clone()), one_way(from_server, to_client, held));
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut held: watch::Receiver<bool>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        // Also the end waits: that is what half-open means.
        if held.wait_for(|held| !held).await.is_err() {
            return;
        }
        if read == 0 || to.write_all(&buffer[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// An echo server, and a connection to it through a proxy.
    async fn echo() -> (Proxy, TcpStream) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let stream = TcpStream::connect(proxy.address()).await.unwrap();
        (proxy, stream)
    }

    async fn echoes(stream: &mut TcpStream) -> io::Result<()> {
        stream.write_all(b"x").await?;
        let mut byte = [0];
        stream.read_exact(&mut byte).await.map(drop)
    }

    #[tokio::test]
    async fn cuts() {
        let (proxy, mut stream) = echo().await;
        echoes(&mut stream).await.unwrap();
        proxy.cut();
        assert!(echoes(&mut stream).await.is_err());
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        echoes(&mut stream).await.unwrap();
    }

    #[tokio::test]
    async fn holds_and_heals() {
        let (proxy, mut stream) = echo().await;
        echoes(&mut stream).await.unwrap();
        proxy.half_open();
        let silent = tokio::time::timeout(Duration::from_millis(50), echoes(&mut stream)).await;
        assert!(silent.is_err(), "{silent:?}");
        let mut other = TcpStream::connect(proxy.address()).await.unwrap();
        echoes(&mut other).await.unwrap();
        proxy.heal();
        let mut rest = Vec::new();
        let end = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut rest)).await.unwrap();
        assert!(end.is_err() || rest.is_empty(), "nothing of what was held arrives: {rest:?}");
        echoes(&mut other).await.unwrap();
    }
}
