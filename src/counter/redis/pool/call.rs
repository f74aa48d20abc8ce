//! Builds the calls of a node for a subject, and applies the answers.

use super::{
    AHEAD_MAX, AHEAD_MIN, Calendar, GrantedUnits, LIFE, LeaseGrant, LeaseRequest, LimitRule,
    OutstandingUnits, PROMISE, Per, RENEW_EVERY, RENEW_HOLDS_EVERY, SubjectPool, Timestamp, WINDOWS, Wanted,
    WindowReport, fallback, ns,
};

impl SubjectPool {
    /// Whether it is time to call for more units, before a request has to wait. Of holds, none are granted in advance: what
    /// one node has in hand may be the rest that a request on another one needs.
    pub fn wants_more(&mut self) -> bool {
        let wants = !self.is_held()
            && self.exhausted.is_none()
            && self.target >= AHEAD_MIN
            && self.units() <= self.target / 2;
        self.is_wanting |= wants;
        wants
    }

    /// Drops expired units, and says whether there is a reason to call: waiting requests want more than is in hand, units are wanted in advance, or a report
    /// is due.
    pub fn wants_call(&mut self, wanted: Wanted, now_ns: u64) -> bool {
        self.is_wanting
            || self.is_leaving
            || (wanted.units > 0 && !self.can_spend(wanted.units, now_ns))
            || self.needs_call(now_ns)
    }

    /// The call for what waiting requests want, at this instant of Redis' clock, in the windows of `calendar`.
    pub fn ask(&mut self, wanted: Wanted, now_ns: u64, wall: Timestamp, calendar: Calendar) -> LeaseRequest {
        let waiting = wanted.units;
        self.expire(now_ns);
        self.turn(calendar, wall);
        let have = self.units();
        let is_wanting = std::mem::take(&mut self.is_wanting);
        let ahead = if !self.is_held() && (waiting > 0 || is_wanting) {
            self.ahead(waiting, have, now_ns)
        } else {
            0
        };
        let holding = if waiting > 0 {
            self.in_flight
        } else {
            std::mem::replace(&mut self.peak_in_flight, self.in_flight).min(self.places).max(self.in_flight)
        };
        // Until the answer arrives, no request may take a place that is reported as free.
        self.places = self.places.min(holding);
        let keeps = now_ns < self.promised_until_ns;
        self.seq = (now_ns / 1_000).max(self.seq + 1);
        self.telling.append(&mut self.untold);
        fallback::fold(&mut self.telling);
        // Units of a hold are reserved, and others are debited, until it is known what was used.
        let (in_hand, is_held) = (if self.is_held() { 0 } else { have }, self.is_held());
        let windows = self.own.each_mut().map(|own| {
            own.fallback = 0;
            if !keeps {
                own.promise = None;
            }
            WindowReport {
                since: own.since,
                spent: own.spent.saturating_add(in_hand),
                told: own.told,
                heard: own.heard,
                held: own.promise.unwrap_or(0),
            }
        });
        let max_places = self.max_places();
        LeaseRequest {
            seq: self.seq,
            epoch: self.epoch,
            limits: self.limits.clone(),
            waiting,
            need: waiting.saturating_sub(have),
            least: wanted.least,
            ahead,
            leaves: self.is_leaving,
            windows,
            holds: is_held.then(|| self.own.map(|own| own.on_hold.saturating_add(have))),
            returned: (std::mem::take(&mut self.returned), self.returned_at_us),
            untold: self.outstanding(wall.as_micros()),
            ledger: None,
            places: max_places.map(|_| holding),
            ahead_places: if waiting > 0 { self.in_flight } else { 0 },
            max_places: max_places.unwrap_or(0),
        }
    }

    /// The unreported units. A request is in the ledger when it has ended, and which of these units are those of open requests is
    /// unknown, so of the oldest as many as are in flight are dated now.
    fn outstanding(&self, at_us: i64) -> Vec<OutstandingUnits> {
        let (mut all, mut open) = (self.telling.clone(), self.in_flight);
        for old in &mut all {
            let units = open.min(old.units);
            old.units -= units;
            open -= units;
        }
        let units = self.in_flight - open;
        all.retain(|outstanding| outstanding.units > 0);
        if units > 0 {
            all.push(OutstandingUnits { at_us, units });
        }
        all
    }

    fn ahead(&mut self, waiting: u64, have: u64, now_ns: u64) -> u64 {
        // At least five milliseconds; otherwise the first few requests after a pause would look like a flood.
        let elapsed = now_ns.saturating_sub(self.asked_at_ns).max(ns(LIFE) / 10);
        let demand = self.attempts.saturating_mul(ns(LIFE)) / elapsed;
        self.target = u64::midpoint(self.target, demand).min(AHEAD_MAX);
        self.attempts = 0;
        self.asked_at_ns = now_ns;
        if self.target < AHEAD_MIN { 0 } else { self.target.saturating_sub(have.saturating_sub(waiting)) }
    }

    /// Applies the answer to a call that was sent at `sent_ns`; ignores it if another call was sent since.
    pub fn answer(&mut self, ask: &LeaseRequest, grant: &LeaseGrant, sent_ns: u64, now_ns: u64) {
        if ask.seq != self.seq {
            return;
        }
        self.unsure = false;
        self.epoch = grant.epoch;
        let at = Timestamp::from_micros(grant.now_us);
        self.heard_at = Some(at);
        self.promised_until_ns = sent_ns.saturating_add(ns(PROMISE));
        let is_limited = |per: Per| {
            ask.limits
                .iter()
                .any(|l| matches!(l.rule, LimitRule::Window { per: limited, .. } if limited == per))
        };
        let (mut is_over, mut spent_twice) = (self.limits != ask.limits, 0);
        for (n, own) in self.own.iter_mut().enumerate() {
            let said = ask.windows[n];
            if own.since != said.since {
                is_over = true;
                continue;
            }
            match ask.holds {
                None => own.told = said.spent.saturating_add(grant.units),
                Some(held) => {
                    own.told = said.spent;
                    own.told_hold = held[n].saturating_add(grant.units);
                }
            }
            own.heard = grant.used[n];
            if is_limited(WINDOWS[n]) {
                // What Redis reserves for this node besides the grant; some of it was spent while the call was in flight.
                let kept = said.held.saturating_sub(grant.units).max(grant.promises[n]);
                spent_twice = spent_twice.max(own.fallback.saturating_sub(kept));
                own.promise = Some(grant.promises[n].min(kept.saturating_sub(own.fallback)));
            }
        }
        self.telling.clear();
        let units = grant.units.saturating_sub(spent_twice);
        if is_over {
            self.comes_back(grant.units, grant.now_us);
        } else if units > 0 {
            let until_ns = sent_ns.saturating_add(self.life_ns(at));
            self.hand.push_back(GrantedUnits { units, at_us: grant.now_us, until_ns });
        }
        if ask.places.is_some() {
            self.places = grant.places;
            self.places_from_ns = sent_ns;
        }
        self.left.clone_from(&grant.left);
        self.left_at_ns = now_ns;
        if !grant.is_held_back && (ask.waiting > 0 || ask.ahead > 0) {
            self.believe(ask, grant, now_ns);
        }
    }

    /// A call was not answered. It is unknown whether Redis processed it; the next one reports everything again.
    pub const fn unanswered(&mut self, ask: &LeaseRequest) {
        if ask.seq == self.seq {
            self.unsure = true;
        }
    }

    /// Drops expired units, and returns whether a report to Redis is due although nobody waits.
    pub fn needs_call(&mut self, now_ns: u64) -> bool {
        self.expire(now_ns);
        self.unsure || self.is_unreported() || self.places_are_due(now_ns) || self.holds_are_due(now_ns)
    }

    /// Whether a report to Redis will be due sooner or later.
    pub fn owes(&self) -> bool {
        self.unsure || self.is_unreported() || !self.hand.is_empty() || self.places > 0 || self.has_holds()
    }

    /// Whether Redis answered at or after this instant of steady time.
    pub const fn was_heard_since(&self, since_ns: u64) -> bool {
        self.epoch != 0 && self.promised_until_ns >= since_ns.saturating_add(ns(PROMISE))
    }

    /// Redis may have lost its data: everything is reported again.
    pub const fn report_again(&mut self) {
        self.unsure = true;
    }

    /// What was spent without Redis, or settled, and is not confirmed yet.
    #[cfg(test)]
    pub fn unreported_units(&self) -> u64 {
        self.telling.iter().chain(&self.untold).map(|u| u.units).sum()
    }

    fn is_unreported(&self) -> bool {
        let have = self.units();
        let (spent, held) = if self.is_held() { (0, have) } else { (have, 0) };
        self.own.iter().any(|own| {
            own.since > 0
                && (own.told != own.spent.saturating_add(spent)
                    || own.told_hold != own.on_hold.saturating_add(held))
        })
    }

    fn has_holds(&self) -> bool {
        self.own.iter().any(|own| own.on_hold > 0)
    }

    fn holds_are_due(&self, now_ns: u64) -> bool {
        let renewed_until_ns = self.promised_until_ns.saturating_sub(ns(PROMISE) - ns(RENEW_HOLDS_EVERY));
        self.is_held() && now_ns >= renewed_until_ns && self.has_holds()
    }

    fn places_are_due(&self, now_ns: u64) -> bool {
        let unused = self.places > self.in_flight;
        let old = now_ns.saturating_sub(self.places_from_ns) >= ns(RENEW_EVERY);
        self.max_places().is_some() && (unused || (self.places > 0 && old))
    }

    /// How long a unit debited at this instant is valid: not beyond the end of any window that it was paid in.
    fn life_ns(&self, at: Timestamp) -> u64 {
        let windows = self.limits.iter().filter_map(|l| match l.rule {
            LimitRule::Window { per, .. } => self.own[per.window_index()?].window.left(at),
            _ => None,
        });
        windows.min().map_or(ns(LIFE), |end| ns(LIFE.min(end)))
    }
}
