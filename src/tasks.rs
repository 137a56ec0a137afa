//! Supervised background tasks. Every spawned task is watched: a task that returns or panics ends the process, and the error
//! names the task.

use std::future::Future;

use tokio::task::JoinSet;

/// The background tasks of the process.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    running: JoinSet<&'static str>,
    names: std::collections::HashMap<tokio::task::Id, &'static str>,
}

/// The error that a task ended that should run until the process ends.
#[derive(Debug, thiserror::Error)]
#[error("the task '{name}' ended: {how}; this is a bug in rolegate, and the process exits so that it is restarted")]
pub(crate) struct TaskEnded {
    name: &'static str,
    how: String,
}

impl Tasks {
    /// Starts a task that runs until the process ends.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let handle = self.running.spawn(async move {
            task.await;
            name
        });
        self.names.insert(handle.id(), name);
    }

    /// Waits until a task ends that should not. Waits forever if there are no tasks.
    pub(crate) async fn first_ended(&mut self) -> TaskEnded {
        match self.running.join_next().await {
            None => std::future::pending().await,
            Some(Ok(name)) => TaskEnded { name, how: "it returned".to_owned() },
            Some(Err(error)) => {
                let name = self.names.get(&error.id()).copied().unwrap_or("unknown");
                // The panic's payload is left out, because it may contain secrets.
                TaskEnded { name, how: if error.is_panic() { "it panicked" } else { "it was cancelled" }.to_owned() }
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
        assert!(tasks.first_ended().await.to_string().contains("'short' ended: it returned"));
        tasks.spawn("broken", async { panic!("secret-value") });
        let ended = tasks.first_ended().await.to_string();
        assert!(ended.contains("'broken' ended: it panicked") && !ended.contains("secret-value"), "{ended}");
    }
}
