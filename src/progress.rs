//! One line on a terminal that says how far a command is. It is rewritten, and gone at the end.

use std::fmt;
use std::io::Write;

/// Moves to the beginning of the line and clears it (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[K";

/// The line of progress. Nothing is written without a terminal. Dropping it clears the line.
pub(crate) struct Progress {
    terminal: Option<Box<dyn Write + Send>>,
    shown: bool,
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress").field("on_terminal", &self.terminal.is_some()).field("shown", &self.shown).finish()
    }
}

impl Progress {
    /// Creates a line on a terminal; `None` writes nothing.
    pub(crate) fn new(terminal: Option<Box<dyn Write + Send>>) -> Self {
        Self { terminal, shown: false }
    }

    /// Replaces the line. A terminal that is gone is no reason to fail.
    pub(crate) fn show(&mut self, text: &str) {
        if let Some(terminal) = &mut self.terminal {
            self.shown = true;
            let _ = write!(terminal, "{CLEAR}rolegate: {text}").and_then(|()| terminal.flush());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(terminal) = self.terminal.as_mut().filter(|_| self.shown) {
            let _ = write!(terminal, "{CLEAR}").and_then(|()| terminal.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(use_it: impl FnOnce(&mut Progress)) -> String {
        let screen = Screen::default();
        let mut progress = Progress::new(Some(Box::new(screen.clone())));
        use_it(&mut progress);
        drop(progress);
        let bytes = screen.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn the_line_is_rewritten_and_cleared_at_the_end() {
        let text = written(|progress| {
            progress.show("1 of 2 nodes");
            progress.show("2 of 2 nodes");
        });
        assert_eq!(text, "\r\x1b[Krolegate: 1 of 2 nodes\r\x1b[Krolegate: 2 of 2 nodes\r\x1b[K");
        assert_eq!(written(|_| {}), "", "nothing was shown, so nothing is cleared");
    }
}
