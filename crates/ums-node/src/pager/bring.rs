//! The destination's pager: carries a keeper's questions to the source, and the answers back, over as many
//! connections as it takes.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_rustls::rustls::ClientConfig;
use ums_checkpoint::supply::{self, ANSWER_LEN, Answer, QUESTION_LEN};
use ums_tls::{ALPN_PAGES, Connection};

use super::serve::WELCOME;
use super::{Bring, Stayed};
use crate::problem;

/// How long one attempt to connect may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(5);
/// How long what was asked may go unanswered until the connection counts as broken.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// Pause between two attempts to connect.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Questions that wait: a keeper asks for so much at a time that this is never reached.
const QUESTIONS_MAX: usize = 4096;

type Question = [u8; QUESTION_LEN];

struct Pager {
    config: Arc<ClientConfig>,
    stayed: Stayed,
    opening: Vec<u8>,
    patience: Duration,
    /// Asked and not answered.
    open: VecDeque<Question>,
    keeper: OwnedWriteHalf,
    questions: mpsc::Receiver<Question>,
}

/// Why a connection is over.
enum Ended {
    /// The keeper needs nothing more.
    Done,
    /// It broke, or was silent; whether it had brought anything, and why.
    Broken(bool, anyhow::Error),
    /// The source refuses.
    Refused(Vec<u8>),
}

pub(super) async fn run(task: Bring) -> anyhow::Result<()> {
    let config = ums_tls::client_config(&task.identity.into(), &[ALPN_PAGES])?;
    let keeper = std::io::stdout().as_fd().try_clone_to_owned()?;
    let keeper = std::os::unix::net::UnixStream::from(keeper);
    keeper.set_nonblocking(true)?;
    let (from, keeper) = UnixStream::from_std(keeper)?.into_split();
    let permit = blake3::Hash::from_hex(&task.stayed.permit).context("the permit")?;
    let (asking, questions) = mpsc::channel(QUESTIONS_MAX);
    tokio::spawn(listen(from, asking));
    let mut pager = Pager {
        config,
        stayed: task.stayed,
        opening: [&task.migration.0.as_bytes()[..], permit.as_bytes()].concat(),
        patience: Duration::from_millis(task.patience_ms),
        open: VecDeque::new(),
        keeper,
        questions,
    };
    pager.run().await
}

/// Takes the keeper's questions until it needs nothing more.
async fn listen(mut from: OwnedReadHalf, asking: mpsc::Sender<Question>) {
    let mut question = [0; QUESTION_LEN];
    while from.read_exact(&mut question).await.is_ok() {
        if asking.send(question).await.is_err() {
            return;
        }
    }
}

impl Pager {
    async fn run(&mut self) -> anyhow::Result<()> {
        let mut since = Instant::now();
        loop {
            let why = match self.connect().await {
                Ok(stream) => match self.carry(stream).await {
                    Ended::Done => return Ok(()),
                    Ended::Refused(answer) => return Ok(self.keeper.write_all(&answer).await?),
                    Ended::Broken(brought, error) => {
                        if brought {
                            since = Instant::now();
                        }
                        error
                    }
                },
                Err(error) => error,
            };
            if since.elapsed() > self.patience {
                let reason = format!(
                    "the source `{}` can't be reached at {} for {} s: {why:#}",
                    self.stayed.system,
                    self.stayed.address,
                    self.patience.as_secs()
                );
                eprintln!("ums-agent pager: {reason}");
                return Ok(self.keeper.write_all(&supply::refusal(0, &reason)).await?);
            }
            tokio::time::sleep(CONNECT_PAUSE).await;
            if self.questions.is_closed() && self.questions.is_empty() {
                // The keeper is gone, or has all.
                return Ok(());
            }
        }
    }

    async fn connect(&self) -> anyhow::Result<Connection> {
        let Stayed {
            address, system, ..
        } = &self.stayed;
        let config = Arc::clone(&self.config);
        let connecting = async {
            let mut stream = ums_tls::connect(*address, system, config, CONNECT_PATIENCE).await?;
            stream.write_all(&self.opening).await?;
            stream.flush().await?;
            let welcome = stream.read_u8().await?;
            anyhow::ensure!(welcome == WELCOME, "the source answers {welcome}");
            Ok(stream)
        };
        tokio::time::timeout(CONNECT_PATIENCE * 2, connecting).await?
    }

    /// Carries questions and answers until the connection is over. What is open is asked again first.
    async fn carry(&mut self, stream: Connection) -> Ended {
        let (from, mut to) = tokio::io::split(stream);
        let (answers, mut answered) = mpsc::channel(2);
        let reading = tokio::spawn(read_answers(from, answers));
        let mut brought = false;
        let broken = |brought, error: anyhow::Error| Ended::Broken(brought, error);
        let again: Vec<u8> = self.open.iter().flatten().copied().collect();
        let ended = async {
            if let Err(error) = write(&mut to, &again).await {
                return broken(brought, error);
            }
            let mut silent_at = Instant::now() + ANSWER_PATIENCE;
            loop {
                tokio::select! {
                    question = self.questions.recv() => {
                        let Some(question) = question else {
                            return Ended::Done;
                        };
                        if self.open.is_empty() {
                            silent_at = Instant::now() + ANSWER_PATIENCE;
                        }
                        self.open.push_back(question);
                        if let Err(error) = write(&mut to, &question).await {
                            return broken(brought, error);
                        }
                    }
                    answer = answered.recv() => {
                        let (head, bytes) = match answer {
                            Some(Ok(answer)) => answer,
                            Some(Err(error)) => return broken(brought, error),
                            None => return broken(brought, anyhow::anyhow!("it was closed")),
                        };
                        if head.refused {
                            return Ended::Refused(bytes);
                        }
                        let asked = self.open.pop_front();
                        let asked = asked.and_then(|asked| supply::asked(&asked).ok());
                        if asked.is_none_or(|asked| (asked.place, asked.pages) != (head.place, head.count)) {
                            return broken(brought, anyhow::anyhow!("it answers what was not asked"));
                        }
                        brought = true;
                        silent_at = Instant::now() + ANSWER_PATIENCE;
                        if self.keeper.write_all(&bytes).await.is_err() {
                            return Ended::Done;
                        }
                    }
                    () = tokio::time::sleep_until(silent_at), if !self.open.is_empty() => {
                        return broken(brought, anyhow::anyhow!("it does not answer"));
                    }
                }
            }
        }
        .await;
        reading.abort();
        ended
    }
}

async fn write(to: &mut tokio::io::WriteHalf<Connection>, bytes: &[u8]) -> anyhow::Result<()> {
    let writing = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    Ok(tokio::time::timeout(ANSWER_PATIENCE, writing).await??)
}

/// Reads whole answers, heads included.
async fn read_answers(
    mut from: ReadHalf<Connection>,
    answers: mpsc::Sender<anyhow::Result<(Answer, Vec<u8>)>>,
) {
    loop {
        let read = async {
            let mut bytes = vec![0; ANSWER_LEN];
            from.read_exact(&mut bytes).await?;
            let head = Answer::decode(bytes[..].try_into().expect("its length"))?;
            bytes.resize(ANSWER_LEN + head.len(), 0);
            from.read_exact(&mut bytes[ANSWER_LEN..]).await?;
            Ok::<_, std::io::Error>((head, bytes))
        };
        let read = read.await;
        let over = read.is_err();
        let told = read.map_err(|error| anyhow::anyhow!("{}", problem::chain(&error)));
        if answers.send(told).await.is_err() || over {
            return;
        }
    }
}
