//! The REPLAY service: batches of the host's changes, each performed and answered before the next.

use std::future::Future;
use std::sync::Arc;

use protocol::frame::{self, FrameError};
use protocol::replay::{Batch, Done};

use super::Stream;
use super::hang_up::HangUp;
use crate::console::notice;
use crate::replay::Replay;

/// Serves one connection until the host closes it, says what is no batch, or opens another. The one before loses its turn
/// with the call, not only when this is first polled: who called last is served.
pub(crate) fn serve(
    stream: impl Stream,
    replay: Arc<Replay>,
) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
    let turn = replay.take_over();
    async move {
        tokio::select! {
            served = batches(stream, &replay) => served,
            () = turn.over() => {
                notice!("the host has a new connection for its changes");
                Ok(())
            }
        }
    }
}

async fn batches(mut stream: impl Stream, replay: &Replay) -> anyhow::Result<()> {
    replay.start().await?;
    let gone = HangUp::watch(&stream)?;
    loop {
        let Batch { number, actions } = match frame::read_async(&mut stream).await {
            Ok(batch) => batch,
            Err(FrameError::Closed) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let errors = tokio::select! {
            errors = replay.perform(actions) => errors?,
            () = gone.wait() => return Ok(()),
        };
        frame::write_async(&mut stream, &Done { number, errors }).await?;
    }
}

#[cfg(test)]
mod tests {
    use protocol::replay::{Action, Numbered};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::replay::tests::{Tree, make_file, on_tree};

    fn connect(replay: &Arc<Replay>) -> (UnixStream, JoinHandle<anyhow::Result<()>>) {
        let (host, guest) = UnixStream::pair().unwrap();
        (host, tokio::spawn(serve(guest, replay.clone())))
    }

    fn batch(number: u64, actions: impl IntoIterator<Item = Action>) -> Batch {
        let actions = (1..).zip(actions);
        let actions = actions.map(|(number, action)| Numbered { number, action });
        Batch {
            number,
            actions: actions.collect(),
        }
    }

    async fn ask(host: &mut UnixStream, batch: &Batch) -> Done {
        frame::write_async(host, batch).await.unwrap();
        frame::read_async(host).await.unwrap()
    }

    #[tokio::test]
    async fn batches_are_performed_and_answered_in_order() {
        let tree = Tree::new();
        let (mut host, serving) = connect(&on_tree(&tree));
        for (number, names, errors) in [
            (7, &["a", "b", "a"][..], &[0, 0, libc::EEXIST][..]),
            (u64::MAX, &[], &[]),
            (0, &["c", ".."], &[0, libc::EINVAL]),
        ] {
            let asked = batch(number, names.iter().map(|name| make_file(name)));
            let errors = errors.to_vec();
            assert_eq!(ask(&mut host, &asked).await, Done { number, errors });
        }
        assert!(tree.path("a").exists() && tree.path("b").exists() && tree.path("c").exists());
        drop(host);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_new_connection_takes_over_from_the_one_before() {
        let tree = Tree::new();
        let replay = on_tree(&tree);
        let (mut first, ending) = connect(&replay);
        assert_eq!(ask(&mut first, &batch(1, [make_file("a")])).await.errors, [0]);
        let (mut second, _serving) = connect(&replay);
        ending.await.unwrap().unwrap();
        assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(ask(&mut second, &batch(1, [make_file("b")])).await.errors, [0]);
    }

    #[tokio::test]
    async fn what_is_no_batch_ends_the_connection() {
        let replay = on_tree(&Tree::new());
        let wrong = [
            frame::encode(&"dance").unwrap(),
            frame::encode(&serde_json::json!({"number": 1, "actions": [{"number": 1, "action": "dance"}]}))
                .unwrap(),
            u32::MAX.to_le_bytes().to_vec(),
        ];
        for bytes in wrong {
            let (mut host, serving) = connect(&replay);
            host.write_all(&bytes).await.unwrap();
            assert!(serving.await.unwrap().is_err());
            assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
        }
    }

    #[tokio::test]
    async fn an_agent_that_breaks_down_ends_the_connection_only() {
        let tree = Tree::new();
        let replay = on_tree(&tree);
        let (mut host, serving) = connect(&replay);
        let breaking = batch(1, [Action::Refresh { node: Tree::PANIC }]);
        frame::write_async(&mut host, &breaking).await.unwrap();
        assert!(serving.await.unwrap().is_err());
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    }
}
