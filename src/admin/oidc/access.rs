//! What the groups of a person allow.
//!
//! Every group counts: a person may do what any of theirs allows, with the highest role in each workspace.

use crate::admin::auth::{Identity, Role};
use crate::model::id::WorkspaceId;

/// What the members of a group may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupGrant {
    /// The group, as the provider names it.
    pub group: String,
    /// The role of its members.
    pub role: Role,
    /// Where they have it; none: everywhere, and the role is `platform`.
    pub workspace: Option<WorkspaceId>,
}

/// What one person may do.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::admin) enum Access {
    /// Everything.
    Platform,
    /// In each of these workspaces what the role allows. Never empty; in the order of the grants.
    Workspaces(Vec<(WorkspaceId, Role)>),
}

impl Access {
    /// What members of these groups may do; none: nothing.
    pub(super) fn of(grants: &[GroupGrant], groups: &[String]) -> Option<Self> {
        let mut all: Vec<(WorkspaceId, Role)> = Vec::new();
        for GroupGrant { role, workspace, .. } in grants.iter().filter(|grant| groups.contains(&grant.group))
        {
            let Some(workspace) = workspace else { return Some(Self::Platform) };
            match all.iter_mut().find(|(known, _)| known == workspace) {
                Some((_, known)) => *known = (*known).max(*role),
                None => all.push((workspace.clone(), *role)),
            }
        }
        (!all.is_empty()).then_some(Self::Workspaces(all))
    }

    /// Who `subject` is on a page of this workspace, or of none. In a workspace that is not theirs they are who they are
    /// in their first one, which the API then refuses.
    pub(in crate::admin) fn identity(&self, subject: &str, workspace: Option<&WorkspaceId>) -> Identity {
        let (role, workspace) = match self {
            Self::Platform => (Role::Platform, None),
            Self::Workspaces(all) => {
                let named = all.iter().find(|(known, _)| Some(known) == workspace);
                match named.or(all.first()) {
                    Some((workspace, role)) => (*role, Some(workspace.clone())),
                    None => (Role::Viewer, None),
                }
            }
        };
        Identity { subject: subject.to_owned(), role, workspace, names_workspace: false }
    }

    /// The workspaces, if they are limited.
    pub(in crate::admin) fn workspaces(&self) -> &[(WorkspaceId, Role)] {
        match self {
            Self::Platform => &[],
            Self::Workspaces(all) => all,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(group: &str, role: Role, workspace: &str) -> GroupGrant {
        GroupGrant { group: group.into(), role, workspace: workspace.parse().ok() }
    }

    fn access(groups: &[&str]) -> Option<Access> {
        let grants = [
            grant("looks", Role::Viewer, "shop"),
            grant("looks", Role::Viewer, "lab"),
            grant("works", Role::Admin, "shop"),
            grant("runs", Role::Platform, ""),
        ];
        let groups = groups.iter().map(|group| (*group).to_owned()).collect::<Vec<_>>();
        Access::of(&grants, &groups)
    }

    #[test]
    fn a_person_may_do_what_any_of_their_groups_allows() {
        let shop: WorkspaceId = "shop".parse().expect("an id");
        let lab: WorkspaceId = "lab".parse().expect("an id");
        assert_eq!(access(&[]), None);
        assert_eq!(access(&["Looks", "look", ""]), None);
        assert_eq!(access(&["works"]), Some(Access::Workspaces(vec![(shop.clone(), Role::Admin)])));
        let both = vec![(shop.clone(), Role::Admin), (lab.clone(), Role::Viewer)];
        assert_eq!(access(&["works", "looks", "other"]), Some(Access::Workspaces(both)));
        assert_eq!(access(&["looks", "runs"]), Some(Access::Platform));
    }

    #[test]
    fn a_role_is_that_of_the_workspace_of_the_page() {
        let known = |text: &str| text.parse::<WorkspaceId>().expect("an id");
        let both = access(&["works", "looks"]).expect("access");
        let role = |workspace: Option<&str>| {
            let found = both.identity("u", workspace.map(known).as_ref());
            (found.role, found.workspace.map(|workspace| workspace.to_string()))
        };
        assert_eq!(role(Some("lab")), (Role::Viewer, Some("lab".into())));
        assert_eq!(role(Some("shop")), (Role::Admin, Some("shop".into())));
        // Never the workspace that the page names.
        assert_eq!(role(Some("other")), (Role::Admin, Some("shop".into())));
        assert_eq!(role(None), (Role::Admin, Some("shop".into())));
    }
}
