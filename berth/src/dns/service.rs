//! The host's end of the stream on which the guest asks.

use std::io;
use std::sync::Arc;

use protocol::dns::Numbered;
use protocol::dns::message::{self, SERVER_FAILURE};
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Resolver;

/// Questions under way at once. Each may have a few sockets open, and an answer of up to 64 KiB waiting.
const ROOM: usize = 256;
/// Answers on their way to the guest.
const BACKLOG: usize = 64;

/// Answers the guest's questions until the stream ends. What is under way then is dropped, as when this is dropped.
///
/// # Errors
/// When the stream fails.
pub async fn serve(stream: UnixStream, resolver: Arc<Resolver>) -> io::Result<()> {
    let (mut questions, mut to_guest) = stream.into_split();
    let (answers, mut to_send) = mpsc::channel::<Numbered>(BACKLOG);
    let room = Arc::new(Semaphore::new(ROOM));
    let mut under_way = JoinSet::new();
    let reading = async {
        while let Some(Numbered { number, message }) = Numbered::read(&mut questions).await? {
            while under_way.try_join_next().is_some() {}
            let Ok(room) = Arc::clone(&room).try_acquire_owned() else {
                // A guest that does not read its answers either gets none of these.
                if let Some(message) = message::refusal(&message, SERVER_FAILURE) {
                    let _ = answers.try_send(Numbered { number, message });
                }
                continue;
            };
            let (resolver, answers) = (Arc::clone(&resolver), answers.clone());
            under_way.spawn(async move {
                if let Some(message) = resolver.answer(&message).await {
                    // The receiver goes with the stream.
                    let _ = answers.send(Numbered { number, message }).await;
                }
                drop(room);
            });
        }
        Ok(())
    };
    let writing = async {
        while let Some(answer) = to_send.recv().await {
            answer.write(&mut to_guest).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = reading => ended,
        ended = writing => ended,
    }
}
