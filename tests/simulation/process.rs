//! An operating system process in which a relay runs: it can be stopped, suspended with its machine, continued, and killed
//! at any await.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

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
    /// What happens when this many more polls have been made.
    polls_left: Option<(u64, Blow)>,
    /// What happens when it is about to take a producer epoch.
    at_opening: Option<Blow>,
    /// Its machine is suspended since then.
    suspended: Option<Instant>,
    /// For how long its clock stood still.
    stood_still: Duration,
    /// The lease term that it believes to hold.
    term: u64,
    wakers: Vec<Waker>,
}

/// What happens to a process between two awaits, also where no time passes.
#[derive(Clone, Copy)]
pub enum Blow {
    Kill,
    Stop,
    Suspend,
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

    /// At the given poll from now.
    pub fn strike_after_polls(&self, polls: u64, blow: Blow) {
        self.state().polls_left = Some((polls, blow));
    }

    /// When it is about to take a producer epoch: it has proven its lease, and has not fenced anybody yet.
    pub fn strike_at_opening(&self, blow: Blow) {
        self.state().at_opening = Some(blow);
    }

    /// It is about to take a producer epoch.
    pub async fn opens(&self) {
        let blow = self.state().at_opening.take();
        if let Some(blow) = blow {
            self.strike_after_polls(0, blow);
            yield_now().await;
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// SIGCONT, or its machine goes on.
    pub fn go_on(&self) {
        let mut state = self.state();
        state.stopped = false;
        (state.polls_left, state.at_opening) = (None, None);
        let since = state.suspended.take();
        state.stood_still += since.map(|since| since.elapsed()).unwrap_or_default();
        drop(state);
        self.wake();
    }

    /// The monotonic clock of its machine, which stands still while the machine is suspended.
    pub fn clock(&self) -> Instant {
        Instant::now() - self.state().stood_still
    }

    /// Sleeps by that clock.
    pub async fn sleep(&self, time: Duration) {
        let until = self.clock() + time;
        while self.clock() < until {
            let stood_still = self.state().stood_still;
            sleep_until(until + stood_still).await;
        }
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
        let known = |waker: &Waker| waker.will_wake(context.waker());
        if !state.wakers.iter().any(known) {
            state.wakers.push(context.waker().clone());
        }
        match state.polls_left.take() {
            Some((0, blow)) => state.suffer(blow),
            Some((left, blow)) => state.polls_left = Some((left - 1, blow)),
            None => {}
        }
        match (state.dead, state.stopped) {
            (true, _) => Gate::Dead,
            (_, true) => Gate::Stopped,
            _ => Gate::Open,
        }
    }

    /// Runs a future inside the process; `None` if the process was killed.
    pub fn run<F: Future>(&self, future: F) -> Governed<F> {
        Governed {
            process: self.clone(),
            future: Some(Box::pin(future)),
        }
    }
}

impl State {
    fn suffer(&mut self, blow: Blow) {
        match blow {
            Blow::Kill => self.dead = true,
            Blow::Stop => self.stopped = true,
            Blow::Suspend => {
                self.stopped = true;
                self.suspended.get_or_insert_with(Instant::now);
            }
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
