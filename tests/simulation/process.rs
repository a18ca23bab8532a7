//! An operating system process in which a relay runs: it can be stopped, continued, and killed at any await.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// A handle to a process; clones are the same process.
#[derive(Clone)]
pub struct Process {
    name: Arc<str>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    stopped: bool,
    dead: bool,
    /// Killed when this many more polls have been made.
    polls_left: Option<u64>,
    /// The lease term that it believes to hold.
    term: u64,
    wakers: Vec<Waker>,
}

impl Process {
    pub fn new(name: String) -> Self {
        Self {
            name: name.into(),
            state: Arc::default(),
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn term(&self) -> u64 {
        self.state().term
    }

    pub fn set_term(&self, term: u64) {
        self.state().term = term;
    }

    /// SIGKILL.
    pub fn kill(&self) {
        self.state().dead = true;
        self.wake();
    }

    /// SIGKILL at the given poll from now: between any two awaits, also where no time passes.
    pub fn kill_after_polls(&self, polls: u64) {
        self.state().polls_left = Some(polls);
    }

    /// SIGSTOP.
    pub fn stop(&self) {
        self.state().stopped = true;
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.state().stopped = false;
        self.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        let wakers = std::mem::take(&mut self.state().wakers);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether it may run now; if not because it is stopped, it is woken when it goes on.
    fn may_run(&self, context: &Context<'_>) -> Gate {
        let mut state = self.state();
        if state.dead {
            return Gate::Dead;
        }
        if state.wakers.len() > 8 {
            state
                .wakers
                .retain(|waker| !waker.will_wake(context.waker()));
        }
        state.wakers.push(context.waker().clone());
        if state.stopped {
            return Gate::Stopped;
        }
        if let Some(left) = state.polls_left.as_mut() {
            match left.checked_sub(1) {
                Some(less) => *left = less,
                None => {
                    state.dead = true;
                    return Gate::Dead;
                }
            }
        }
        Gate::Open
    }

    /// Runs a future inside the process; `None` if the process was killed.
    pub fn run<F: Future>(&self, future: F) -> Governed<F> {
        Governed {
            process: self.clone(),
            future: Some(Box::pin(future)),
        }
    }
}

enum Gate {
    Open,
    Stopped,
    Dead,
}

/// A future of a process.
pub struct Governed<F> {
    process: Process,
    future: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Governed<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.process.may_run(context) {
            Gate::Stopped => return Poll::Pending,
            Gate::Dead => {
                self.future = None;
                return Poll::Ready(None);
            }
            Gate::Open => {}
        }
        match self
            .future
            .as_mut()
            .map(|future| future.as_mut().poll(context))
        {
            Some(Poll::Pending) => Poll::Pending,
            Some(Poll::Ready(output)) => {
                self.future = None;
                Poll::Ready(Some(output))
            }
            None => Poll::Ready(None),
        }
    }
}
