//! Mutually authenticated channels to the three servers.

use std::{future::Future, time::Duration};

use concilium_rpc::{
    connect::{self, ConnectError},
    identity::Identity,
    signature::Authorities,
    status::RpcError,
    tls::TlsMaterial,
    v1::{ListTasksRequest, prediction_client::PredictionClient},
};
use tokio::sync::watch;
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    config::ConnectionConfig,
    retry::RetryPolicy,
    task::{Task, TaskError, agree},
};

pub use crate::server_error::{ServerError, all_or_most_useful, most_useful};

/// Most tasks that one server may announce.
const MAXIMUM_TASKS: usize = 1024;

/// Channels to the three servers with the caller's certificate.
///
/// A channel connects at its first call and again after a failure, so opening a connection needs no
/// server.
pub struct Connection {
    config: ConnectionConfig,
    tls: TlsMaterial,
    authorities: Authorities,
    channels: [Channel; 3],
}

impl Connection {
    /// Reads the TLS files and prepares the channels. Must run within a tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`] if a file or an address cannot be used.
    pub fn open(config: &ConnectionConfig) -> Result<Self, ConnectError> {
        let tls = config.tls.load()?;
        let channel = |server: u8| {
            connect::endpoint(server, &config.servers[usize::from(server)], &tls)
                .map(|endpoint| endpoint.connect_timeout(config.connect_timeout()).connect_lazy())
        };
        let channels = [channel(0)?, channel(1)?, channel(2)?];
        let authorities = Authorities::of(&tls);
        Ok(Self { config: config.clone(), tls, authorities, channels })
    }

    /// Whose certificate is shown.
    pub fn identity(&self) -> &Identity {
        self.tls.identity()
    }

    /// The authorities of whose servers signatures are accepted.
    pub fn authorities(&self) -> &Authorities {
        &self.authorities
    }

    /// The settings that were opened.
    pub fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// Makes one call to one server within the time limit. `name` is the call's name for errors.
    ///
    /// # Errors
    /// [`ServerError`].
    ///
    /// # Panics
    /// If `server` is above 2.
    pub async fn call<T, F>(
        &self,
        server: u8,
        name: &'static str,
        call: impl FnOnce(Channel) -> F,
    ) -> Result<T, ServerError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let channel = self.channels[usize::from(server)].clone();
        let address = || self.config.servers[usize::from(server)].clone();
        match tokio::time::timeout(self.config.request_timeout(), call(channel)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(CallError::Status(status))) => Err(self.explain(server, &status)),
            Ok(Err(CallError::Malformed(problem))) => {
                Err(ServerError::Malformed { server, address: address(), problem })
            }
            Err(_) => Err(self.timed_out(server, name)),
        }
    }

    fn timed_out(&self, server: u8, call: &'static str) -> ServerError {
        ServerError::TimedOut {
            server,
            address: self.config.servers[usize::from(server)].clone(),
            call,
            limit_ms: self.config.request_timeout_ms,
        }
    }

    /// Makes the same call to all three servers at once and waits for all of them.
    pub async fn call_all<T, F>(
        &self,
        name: &'static str,
        call: impl Fn(u8, Channel) -> F,
    ) -> [Result<T, ServerError>; 3]
    where
        F: Future<Output = Result<T, CallError>>,
    {
        self.call_all_repeating(name, &RetryPolicy::ONCE, call).await
    }

    /// As [`Self::call_all`], repeating the call to each server by itself as `retry` says.
    pub async fn call_all_repeating<T, F>(
        &self,
        name: &'static str,
        retry: &RetryPolicy,
        call: impl Fn(u8, Channel) -> F,
    ) -> [Result<T, ServerError>; 3]
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let [first, second, third] = [0, 1, 2].map(|server| self.repeat(server, name, retry, &call));
        tokio::join!(first, second, third).into()
    }

    async fn repeat<T, F>(
        &self,
        server: u8,
        name: &'static str,
        retry: &RetryPolicy,
        call: &impl Fn(u8, Channel) -> F,
    ) -> Result<T, ServerError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut attempt = 1;
        loop {
            let error = match self.call(server, name, |channel| call(server, channel)).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = retry.pause_after(attempt, &error) else { return Err(error) };
            tracing::info!(call = name, attempt, ?pause, %error, "repeating");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// As [`Self::call_all`], but when one server fails, the others are waited for no longer than `grace`
    /// ([`ServerError::GivenUp`]): of calls that need all three servers, the others may never end.
    pub async fn call_all_until<T, F>(
        &self,
        name: &'static str,
        grace: Duration,
        call: impl Fn(u8, Channel) -> F,
    ) -> [Result<T, ServerError>; 3]
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let (failed, _) = watch::channel(false);
        let [first, second, third] =
            [0, 1, 2].map(|server| self.unless_failed(server, name, grace, &failed, &call));
        tokio::join!(first, second, third).into()
    }

    async fn unless_failed<T, F>(
        &self,
        server: u8,
        name: &'static str,
        grace: Duration,
        failed: &watch::Sender<bool>,
        call: &impl Fn(u8, Channel) -> F,
    ) -> Result<T, ServerError>
    where
        F: Future<Output = Result<T, CallError>>,
    {
        let mut others = failed.subscribe();
        let given_up = async {
            if others.wait_for(|&failed| failed).await.is_ok() {
                tokio::time::sleep(grace).await;
            }
        };
        let result = tokio::select! {
            biased;
            result = self.call(server, name, |channel| call(server, channel)) => result,
            () = given_up => Err(ServerError::GivenUp {
                server,
                address: self.config.servers[usize::from(server)].clone(),
            }),
        };
        if result.is_err() {
            failed.send_replace(true);
        }
        result
    }

    /// The tasks that all three servers serve, ordered by name.
    ///
    /// # Errors
    /// [`TaskError`]: a server fails, or two of them differ in a task; the error names task, field and
    /// servers.
    pub async fn tasks(&self) -> Result<Vec<Task>, TaskError> {
        agree(self.announced().await?, None)
    }

    /// The task of this name. Differences between the servers in other tasks do not matter.
    ///
    /// # Errors
    /// As [`Self::tasks`], and [`TaskError::Unknown`].
    pub async fn task(&self, name: &str) -> Result<Task, TaskError> {
        let announced = self.announced().await?;
        let served: Vec<_> = announced[0].iter().map(|task| task.name.clone()).collect();
        agree(announced, Some(name))?
            .pop()
            .ok_or_else(|| TaskError::Unknown { task: name.to_owned(), served: served.join(", ") })
    }

    async fn announced(&self) -> Result<[Vec<concilium_rpc::v1::Task>; 3], TaskError> {
        let lists = self
            .call_all("ListTasks", |_, channel| async move {
                let answer = PredictionClient::new(channel).list_tasks(ListTasksRequest {}).await?;
                let tasks = answer.into_inner().tasks;
                if tasks.len() > MAXIMUM_TASKS {
                    return Err(CallError::Malformed(format!("{} tasks", tasks.len())));
                }
                Ok(tasks)
            })
            .await;
        Ok(all_or_most_useful(lists)?)
    }

    fn explain(&self, server: u8, status: &Status) -> ServerError {
        let address = &self.config.servers[usize::from(server)];
        // Only a failure on this side has a source; what a server sends is a code and a message.
        match std::error::Error::source(status) {
            Some(source) => ServerError::Connection {
                server,
                source: Box::new(connect::explain(server, address, &self.tls, source)),
            },
            None => {
                let source = RpcError::from_status(status);
                let asked = status.get_details_retry_info().and_then(|information| information.retry_delay);
                let retry_after = source.retry_after().or(asked);
                ServerError::Refused {
                    server,
                    address: address.clone(),
                    source: Box::new(source),
                    retry_after,
                }
            }
        }
    }
}

/// Why one call failed, before it is known which server it was.
#[derive(Debug)]
pub enum CallError {
    /// The call ended with a status.
    Status(Status),
    /// The answer breaks the interface; says what was sent.
    Malformed(String),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use concilium_rpc::{certificates::Authority, identity::Role};

    use super::*;
    use crate::terminal::FailureClass;

    /// The settings of a caller `alice` for three servers at one address.
    fn config(folder: &Path, address: &str) -> ConnectionConfig {
        let identity = Identity::new(Role::Client, "alice").unwrap();
        let issued = Authority::create().unwrap().issue(&identity, &[], 1).unwrap();
        ConnectionConfig {
            servers: [address.to_owned(), address.to_owned(), address.to_owned()],
            tls: issued.save(folder).unwrap(),
            connect_timeout_ms: 2_000,
            request_timeout_ms: 5_000,
        }
    }

    /// What a server looks like whose process dies while its host goes on.
    #[tokio::test]
    async fn connections_that_are_reset_are_tried_again_and_told_as_unavailable() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counted = accepted.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                // Unsent and unread data is dropped, and the other side gets a reset.
                stream.set_zero_linger().unwrap();
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let connection = Connection::open(&config(folder.path(), &address)).unwrap();
        let pause = Duration::from_millis(1);
        let retry = RetryPolicy { attempts: 4, first_pause: pause, longest_pause: pause };
        let results = connection
            .call_all_repeating("ListTasks", &retry, |_, channel| async move {
                Ok(PredictionClient::new(channel).list_tasks(ListTasksRequest {}).await?)
            })
            .await;
        for (server, result) in results.into_iter().enumerate() {
            let error = result.err().unwrap();
            assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
            assert!(error.to_string().contains(&format!("server {server} at {address}")), "{error}");
        }
        assert!(accepted.load(Ordering::SeqCst) >= 12, "each of three servers was called four times");
    }

    #[tokio::test]
    async fn nobody_there_is_told_with_address() {
        let folder = tempfile::tempdir().unwrap();
        // A port that was free a moment ago and has no listener.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let config = config(folder.path(), &address);
        let connection = Connection::open(&config).unwrap();
        assert_eq!(connection.identity(), &Identity::new(Role::Client, "alice").unwrap());
        let error = connection.tasks().await.unwrap_err();
        assert!(error.to_string().contains(&address), "{error}");
        assert_eq!(error.class(), FailureClass::Unavailable, "{error}");
        let wrong = ConnectionConfig { servers: [address, "nowhere".into(), "x:y".into()], ..config };
        let error = Connection::open(&wrong).err().unwrap();
        assert!(error.to_string().contains("server 1"), "{error}");
    }
}
