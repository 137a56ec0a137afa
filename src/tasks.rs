//! Supervised background tasks. Every spawned task is watched: a task that returns or panics ends the process, and the error
//! names the task.

use std::borrow::Cow;
use std::error::Error;
use std::future::Future;

use tokio::task::{JoinError, JoinSet};

use crate::advice::Advise;

/// The background tasks of the process.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: JoinSet<(&'static str, Option<TaskFailure>)>,
    names: std::collections::HashMap<tokio::task::Id, &'static str>,
}

type TaskFailure = Box<dyn Error + Send + Sync>;

/// The error that a task ended that should run until the process ends.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskEnded {
    /// It cannot go on, for a reason that it gives.
    #[error(transparent)]
    Failed(TaskFailure),
    /// Nothing foresees that it ends.
    #[error("the task '{name}' {how} unexpectedly")]
    Unexpected {
        /// Its name.
        name: &'static str,
        /// How it ended.
        how: &'static str,
    },
}

impl TaskEnded {
    /// A task of this name that gave no result.
    pub(crate) fn of(name: &'static str, error: &JoinError) -> Self {
        // Not the panic's payload: nobody has looked at it for secrets.
        Self::Unexpected { name, how: if error.is_panic() { "panicked" } else { "was cancelled" } }
    }
}

impl Advise for TaskEnded {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Failed(_) => None,
            Self::Unexpected { .. } => Some("this is a bug in rolegate; please report it".into()),
        }
    }
}

impl Tasks {
    /// Starts a task that runs until the process ends.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.running.spawn(async move {
            task.await;
            (name, None)
        });
        self.names.insert(handle.id(), name);
    }

    /// Starts a task that runs for as long as the process, unless it fails.
    pub(crate) fn spawn_fallible<E: Error + Send + Sync + 'static>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = E> + Send + 'static,
    ) {
        let handle = self.running.spawn(async move { (name, Some(TaskFailure::from(task.await))) });
        self.names.insert(handle.id(), name);
    }

    /// Waits until a task ends that should not have; with no tasks, for ever.
    pub(crate) async fn first_ended(&mut self) -> TaskEnded {
        match self.running.join_next().await {
            None => std::future::pending().await,
            Some(Ok((_, Some(failure)))) => TaskEnded::Failed(failure),
            Some(Ok((name, None))) => TaskEnded::Unexpected { name, how: "returned" },
            Some(Err(error)) => {
                let name = self.names.get(&error.id()).copied().unwrap_or("unknown");
                TaskEnded::of(name, &error)
            }
        }
    }

    /// Cancels all tasks, and waits until they have ended.
    pub(crate) async fn end(&mut self) {
        self.running.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_named() {
        let mut tasks = Tasks::default();
        tasks.spawn("for ever", std::future::pending());
        tasks.spawn("short", async {});
        assert!(tasks.first_ended().await.to_string().contains("'short' returned"));
        tasks.spawn("broken", async { panic!("secret-value") });
        let ended = tasks.first_ended().await.to_string();
        assert!(ended.contains("'broken' panicked") && !ended.contains("secret-value"), "{ended}");
        tasks.spawn_fallible("failing", async { std::io::Error::other("no helper") });
        let ended = tasks.first_ended().await;
        assert_eq!((ended.to_string(), ended.advice()), ("no helper".to_owned(), None), "a failure is no bug");
    }
}
