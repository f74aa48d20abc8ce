//! Every text of the console, in English and Chinese.
//!
//! A text without one of its languages does not compile, and no template has a text of its own (tested).

use crate::model::fault::Lang;

macro_rules! texts {
    ($($name:ident: $en:literal, $zh:literal;)+) => {
        /// The texts of one language.
        pub(super) struct Texts { $(pub(super) $name: &'static str,)+ }

        impl Texts {
            /// English.
            pub(super) const EN: Self = Self { $($name: $en,)+ };
            /// Simplified Chinese.
            pub(super) const ZH: Self = Self { $($name: $zh,)+ };
            /// Every text in both languages.
            #[cfg(test)]
            const ALL: &'static [(&'static str, &'static str, &'static str)] = &[$((stringify!($name), $en, $zh),)+];
        }
    };
}

impl Texts {
    /// The texts of a language.
    pub(super) fn of(lang: Lang) -> &'static Self {
        match lang {
            Lang::En => &Self::EN,
            Lang::Zh => &Self::ZH,
        }
    }
}

texts! {
    a_second: "/s", "/秒";
    above: "Above (input tokens)", "高于（输入令牌数）";
    action: "Action", "操作";
    actions: "Actions", "操作";
    active: "Active", "启用";
    admin_address: "Admin address", "管理地址";
    admin_token: "Admin token", "管理令牌";
    admin_token_hint: "A token for the admin API. One is in data/admin.token after the first start, and this command makes others:", "管理 API 的令牌。首次启动后 data/admin.token 中有一个；用下面的命令可以创建其他令牌：";
    all_requests: "All requests", "全部请求";
    all_time: "All time", "全部时间";
    allowed_ips: "Allowed addresses", "允许的地址";
    amount: "Amount", "数量";
    another_account: "Use another account", "使用其他账号";
    any: "Any", "不限";
    any_address: "any address", "任意地址";
    api_docs: "API documentation", "API 文档";
    applied_version: "Applied version", "已应用版本";
    as_table: "As a table", "以表格显示";
    attention: "Needs attention", "需要关注";
    audit: "Audit log", "审计日志";
    audit_hint: "Every change and every sign-in to the console, newest first.", "所有变更和控制台登录，最新的在前。";
    behind: "Behind", "落后";
    binds: "binds first", "最先触发";
    budgets: "Limits and budgets", "限额与预算";
    budgets_hint: "What is used of each limit now: used, held by requests in flight, and left. According to the ledger.", "各项限额当前的使用情况：已用、进行中的请求占用以及剩余，以账本为准。";
    burst: "burst", "突发";
    busiest_keys: "Busiest keys", "最繁忙的密钥";
    by_provider: "With your organisation's account", "使用组织账号登录";
    by_provider_hint: "You sign in at", "登录地址：";
    by_token: "With an admin token", "使用管理令牌登录";
    cache_write: "Cache write", "缓存写入";
    cached: "Cached input", "缓存输入";
    cancel: "Cancel", "取消";
    changed: "Changed", "修改于";
    changes: "Changes", "变更";
    clear: "Clear", "清除";
    code_used: "This link has been used, or is too old. Sign in with an admin token, or start the demo again for a new one.", "该链接已被使用或已失效。请使用管理令牌登录，或重新启动演示以获取新链接。";
    concurrency: "Requests at the same time", "并发请求数";
    copied: "Copied", "已复制";
    copy: "Copy", "复制";
    cost: "Cost", "费用";
    count_cost: "cost, in billionths", "费用（十亿分之一）";
    count_input_tokens: "input tokens", "输入令牌数";
    count_output_tokens: "output tokens", "输出令牌数";
    count_requests: "requests", "请求数";
    count_tokens: "tokens", "令牌数";
    create_key: "Create key", "创建密钥";
    create_plan: "Create plan", "创建套餐";
    create_workspace: "Create workspace", "创建工作空间";
    created: "Created", "创建于";
    daily_limit: "Requests per day", "每日请求数";
    default_daily: "Requests per day of a new key", "新密钥的每日请求数";
    delete: "Delete", "删除";
    delete_end_user_hint: "This frees a place in the quota. If the same person comes again, it is a new end user.", "这会释放一个名额。若同一用户再次出现，将作为新的终端用户。";
    delete_key: "Delete this key", "删除此密钥";
    delete_key_hint: "Its secret is refused from the next request on. Statistics and requests stay. Within the days that the plan says, it can be restored from the list of deleted keys.", "从下一个请求起其密文即被拒绝，统计和请求记录会保留。在套餐规定的天数内可从已删除密钥列表中恢复。";
    delete_plan: "Delete this plan", "删除此套餐";
    delete_plan_hint: "A plan can be deleted when no workspace is on it.", "没有工作空间使用的套餐才能删除。";
    delete_price: "Delete this price", "删除此价格";
    delete_price_hint: "Answers of this model have no cost from then on, unless another entry is for it. What is counted stays.", "此后该模型的响应不计费用，除非其他条目适用。已计入的费用会保留。";
    delete_workspace: "Delete this workspace", "删除此工作空间";
    delete_workspace_hint: "Its end users go with it. Usage and the audit log stay.", "其终端用户会一并删除，用量和审计日志会保留。";
    deleted: "Deleted", "已删除";
    deleted_keys_days: "Days to restore deleted keys", "已删除密钥的可恢复天数";
    denied: "Denied", "被拒绝";
    description: "Description", "描述";
    details: "Details", "详情";
    disable: "Disable", "停用";
    disabled: "Disabled", "已停用";
    edit: "Edit", "编辑";
    edit_prices: "Edit all prices", "编辑全部价格";
    enable: "Enable", "启用";
    end_user: "End user", "终端用户";
    end_users: "End users", "终端用户";
    ended: "ended", "已结束";
    environment: "Environment variables", "环境变量";
    error_rate: "Error rate", "错误率";
    errors: "Errors", "错误";
    example_workspace: "WORKSPACE", "工作空间";
    expired: "Expired", "已过期";
    expires: "Expires", "到期";
    expires_at: "Expires", "到期时间";
    failed: "That did not work", "操作未成功";
    fields: "Fields", "字段";
    find: "Find", "查找";
    first_page: "First page", "第一页";
    from_utc: "From (UTC)", "起始（UTC）";
    further_limits: "Further limits", "其他限额";
    granted: "granted", "已授予";
    grants: "Grants", "额外授予";
    group_by: "Group by", "分组";
    h_amount: "How much is added to the limit.", "在限额上增加的数量。";
    h_concurrency: "Requests that may be in flight at once. Empty: no limit.", "允许同时进行的请求数。留空：不限。";
    h_daily: "Admitted requests per day of the plan’s calendar. Empty: no limit.", "套餐日历中每天允许的请求数。留空：不限。";
    h_daily_new: "Admitted requests per day of the plan’s calendar. Empty: the default of the plan.", "套餐日历中每天允许的请求数。留空：使用套餐的默认值。";
    h_default_daily: "For keys that are created without a daily limit. Empty: 100,000 in a new plan, no limit in an existing one.", "用于创建时未设每日限额的密钥。留空：新套餐为 100,000，已有套餐为不限。";
    h_deleted_keys: "For so many days a deleted key can be restored. 0: not at all.", "删除后多少天内可以恢复。0：不可恢复。";
    h_description: "For people, up to 2000 characters.", "供人阅读，最多 2000 个字符。";
    h_end_user: "Your own id of a person: every request of the key counts as theirs. Cannot be changed later. Empty: none.", "您自己的用户标识：该密钥的所有请求都计入此用户。以后不能更改。留空：无。";
    h_expires: "In UTC. From then on the key is refused. Empty: never.", "UTC 时间。此后该密钥会被拒绝。留空：永不过期。";
    h_grant_limit: "The limit of the plan that is raised for this workspace. The plan must have it.", "为此工作空间提高的套餐限额。套餐必须包含该限额。";
    h_ips: "Addresses or networks from which the key may be used, one a line, as 192.0.2.7 or 10.0.0.0/8. Empty: any.", "允许使用密钥的地址或网段，每行一个，如 192.0.2.7 或 10.0.0.0/8。留空：不限。";
    h_limits: "Up to eight: the highest number, what is counted, and in which window. Rows without a number are ignored. Cost is in billionths of the currency unit.", "最多八项：最大值、计数对象和时间窗口。没有数值的行会被忽略。费用以货币单位的十亿分之一计。";
    h_metadata: "Your own data as a JSON object, such as {\"team\": \"search\"}. Up to 64 entries.", "您自己的数据，JSON 对象，例如 {\"team\": \"search\"}。最多 64 项。";
    h_model: "Its name, or its first characters and *. The most precise entry counts.", "模型名称，或开头字符加 *。最精确的条目生效。";
    h_month_day: "On which day months begin, 1 to 31. Empty: the first.", "每月从哪一天开始，1 到 31。留空：1 日。";
    h_name: "What people call it, 1 to 255 characters. Unique among the keys of the resource.", "便于识别的名称，1 到 255 个字符。在同一资源的密钥中唯一。";
    h_plan_end_users: "How many end users a workspace may have.", "一个工作空间最多可有多少终端用户。";
    h_plan_id: "1 to 128 characters: letters, digits, . _ : @ -", "1 到 128 个字符：字母、数字、. _ : @ -";
    h_plan_limits: "Up to eight: whose usage, the highest number, what is counted, and in which window.", "最多八项：对象、最大值、计数内容和时间窗口。";
    h_plan_of: "What the workspace may use.", "工作空间可以使用的额度。";
    h_plan_rate: "The highest rate that a key may have, in requests per second.", "单个密钥的最高速率（每秒请求数）。";
    h_price: "Decimal numbers in your currency, such as 2.5. An empty one is like Input or Output.", "以您的货币计的小数，例如 2.5。留空则与输入或输出相同。";
    h_prices: "A list as the API takes it. It replaces all prices of the store; a model that is not in it has none from then on.", "API 所接受的列表。它会替换存储中的全部价格；不在其中的模型此后没有价格。";
    h_quota: "Admitted requests in the whole life of the key. Empty: no limit.", "密钥整个生命周期内允许的请求数。留空：不限。";
    h_rate_burst: "Requests that may come at once. Empty: as many as per second.", "可以同时到达的请求数。留空：与每秒请求数相同。";
    h_rate_limit: "The highest rate, at most that of the plan.", "最高速率，不超过套餐的上限。";
    h_rate_limit_new: "The highest rate, at most that of the plan. Empty: 50, or less where the plan allows less.", "最高速率，不超过套餐的上限。留空：50，套餐上限更低时取套餐上限。";
    h_reason: "Why, for whoever reads it later.", "授予的原因，供日后查阅。";
    h_resource: "The id of the app, knowledge base or memory that the key is for. Leave it empty for a service key.", "密钥所属的应用、知识库或记忆的标识。service 密钥请留空。";
    h_retention: "For how many days usage records are kept. Empty: for ever.", "用量记录保留的天数。留空：永久保留。";
    h_scopes: "What routes may ask for, as words: orders:read orders:*. Empty: the scope of the type. A service key needs at least one.", "路由可要求的权限范围，以空格分隔：orders:read orders:*。留空：使用该类型自带的范围。service 密钥至少需要一个。";
    h_scopes_edit: "What routes may ask for, as words: orders:read orders:*.", "路由可要求的权限范围，以空格分隔：orders:read orders:*。";
    h_tiers: "Their prices are for all tokens of an answer with more input tokens than that. An empty one is like above. To remove a tier, empty its row.", "适用于输入令牌数超过该值的响应的全部令牌。留空则与上方相同；清空整行即可删除。";
    h_type: "A service key is for the whole workspace; the others are for one resource each.", "service 密钥用于整个工作空间；其他类型各用于一个资源。";
    h_until: "In UTC. From then on the grant no longer counts.", "UTC 时间。此后该授予不再有效。";
    h_week_day: "On which day weeks begin.", "每周从哪一天开始。";
    h_workspace_id: "1 to 128 characters: letters, digits, . _ : @ - . Tokens name it.", "1 到 128 个字符：字母、数字、. _ : @ - 。令牌用它指明工作空间。";
    h_workspace_name: "For people. May be empty.", "供人阅读，可以留空。";
    h_zone: "The time zone whose days, weeks and months count, such as Asia/Shanghai. Empty: UTC.", "计算日、周、月所用的时区，如 Asia/Shanghai。留空：UTC。";
    held: "held", "占用";
    id: "Id", "标识";
    id_required: "An id is required", "必须填写标识";
    identity_away: "The identity service cannot be asked at the moment. Try again in a minute.", "目前无法访问身份服务，请稍后再试。";
    input: "Input", "输入";
    key: "Key", "密钥";
    key_type: "Type", "类型";
    keys: "Keys", "密钥";
    keys_in_memory: "Keys in memory", "内存中的密钥";
    known_here: "What this node knows", "本节点所知";
    last_day: "24 hours", "24 小时";
    last_month: "30 days", "30 天";
    last_used: "Last used", "最近使用";
    left: "left", "剩余";
    limit: "Limit", "限额";
    limit_count: "What is counted, row", "计数内容，第几行";
    limit_max: "Highest number, row", "最大值，第几行";
    limit_of: "Whose usage, row", "对象，第几行";
    limit_per: "Window, row", "时间窗口，第几行";
    limits_now: "Limits now", "当前限额";
    live: "live", "在线";
    manage: "Manage", "管理";
    metadata: "Metadata", "元数据";
    mistakes: "Mistakes", "错误";
    model: "Model", "模型";
    month_day: "First day of the month", "每月起始日";
    name: "Name", "名称";
    navigation: "Main", "主导航";
    never: "never", "从不";
    new_grant: "Grant more", "增加授予";
    new_key: "New key", "新建密钥";
    new_plan: "New plan", "新建套餐";
    new_price: "Add a price", "添加价格";
    new_secret: "New secret", "新密文";
    new_workspace: "New workspace", "新建工作空间";
    newest_requests: "Newest requests", "最新请求";
    next_page: "Next page", "下一页";
    no_attention: "No key has expired, is used up, or expires within a week.", "没有密钥已过期、已用完或将在一周内到期。";
    no_changes: "No changes yet.", "暂无变更。";
    no_end_users: "No end users yet", "还没有终端用户";
    no_end_users_hint: "They appear here with their first request, when a route finds an end user in a header, the query or the body.", "当路由在请求头、查询或正文中识别出终端用户时，会在其首次请求后显示在此。";
    no_grants: "Nothing is granted beyond the plan.", "除套餐外没有额外授予。";
    no_group: "Your account has no access to this console. Ask whoever runs this gateway for it.", "您的账号无权访问此控制台，请联系网关管理员开通。";
    no_keys: "No keys yet", "还没有密钥";
    no_keys_hint: "A key lets a client through the gateway. Create the first one: its secret is shown once, with lines that use it.", "客户端凭密钥通过网关。创建第一个密钥：其密文只显示一次，并附有可直接使用的示例。";
    no_limit: "no limit", "不限";
    no_more: "There are no more.", "没有更多了。";
    no_nodes: "No node has reported yet.", "尚无节点上报。";
    no_prices: "There are no prices in the store yet. Prices of the config file are not listed here.", "存储中还没有价格。配置文件中的价格不在此列出。";
    no_provider: "This gateway has no identity provider. Sign in with an admin token.", "此网关未配置身份提供方，请使用管理令牌登录。";
    no_requests: "No requests here. They appear a moment after they end.", "这里没有请求。请求结束后片刻即会显示。";
    no_usage: "Nothing was used in this time.", "这段时间内没有用量。";
    no_window_limits: "No limit of a time window.", "没有时间窗口限额。";
    no_workspaces: "No workspaces yet", "还没有工作空间";
    no_workspaces_hint: "A workspace is a tenant: its keys, end users and usage are apart from those of others. It is created here, or by the first call of a token that names it.", "工作空间即租户：其密钥、终端用户和用量与其他租户相互隔离。可在此创建，也会在令牌首次指明它时创建。";
    node: "Nodes and config", "节点与配置";
    nodes: "Nodes", "节点";
    none: "none", "无";
    not_allowed: "Not allowed", "不允许";
    not_at_all: "not at all", "立即失效";
    not_begun_here: "This sign-in was begun in another window or browser, took longer than ten minutes, or has ended already. Begin it again.", "此登录是在其他窗口或浏览器中开始的，或已超过十分钟，或已结束。请重新登录。";
    not_found: "Not found", "未找到";
    not_json: "must be a JSON object", "必须是 JSON 对象";
    not_json_list: "must be a JSON list", "必须是 JSON 列表";
    not_live: "not reporting", "未上报";
    not_ok: "failed", "异常";
    nothing_found: "Nothing was found.", "没有找到任何内容。";
    numbers_month: "The last 30 days, in UTC, today included.", "最近 30 天（UTC），含今天。";
    numbers_today: "Today in UTC. The charts show the last 24 hours.", "今天（UTC）。图表显示最近 24 小时。";
    o_aborted: "aborted by the client", "客户端中断";
    o_denied: "denied", "被拒绝";
    o_interrupted: "interrupted by a crash", "因崩溃中断";
    o_served: "served", "已完成";
    o_upstream_failed: "backend failed", "后端失败";
    of_end_user: "of each end user", "每个终端用户";
    of_key: "of the key", "属于密钥";
    of_plan: "of the plan", "属于套餐";
    of_workspace: "of the workspace", "属于工作空间";
    of_workspace_title: "Workspace", "工作空间";
    ok: "ok", "正常";
    old_secret_until: "The secret before stays valid until", "旧密文的有效期至";
    old_secret_valid: "The old secret stays valid", "旧密文继续有效";
    one_day: "for a day", "一天";
    one_hour: "for an hour", "一小时";
    one_week: "for a week", "一周";
    open: "Open", "打开";
    other_lang: "zh", "en";
    other_lang_name: "中文", "English";
    other_origin: "The form was not sent by a page of this server.", "该表单不是由本服务器的页面发送的。";
    outcome: "Outcome", "结果";
    output: "Output", "输出";
    over_time: "Over time", "时间趋势";
    overview: "Overview", "概览";
    p50: "p50", "p50";
    p95: "p95", "p95";
    pages: "Pages", "分页";
    path_contains: "Path contains", "路径包含";
    per_day: "per day", "每天";
    per_hour: "per hour", "每小时";
    per_minute: "per minute", "每分钟";
    per_month: "per month", "每月";
    per_second: "per second", "每秒";
    per_total: "in total", "总计";
    per_week: "per week", "每周";
    plan: "Plan", "套餐";
    plans: "Plans", "套餐";
    plans_hint: "What workspaces may use. Plans of the config file are changed there, not here.", "工作空间可以使用的额度。配置文件中的套餐须在配置文件中修改。";
    platform: "Platform", "平台";
    platform_audit: "Platform audit", "平台审计";
    previous_page: "Previous page", "上一页";
    price_of_million: "Price of a million tokens", "每百万令牌价格";
    prices: "Prices", "价格";
    prices_hint: "What a million tokens cost. Those of the config file are not listed here, and replace those of the same pattern.", "每百万令牌的价格。配置文件中的价格不在此列出，并优先于相同模式的价格。";
    provider_away: "The identity provider cannot be used at the moment. Try again in a minute, or sign in with an admin token.", "目前无法使用身份提供方，请稍后重试，或使用管理令牌登录。";
    provider_failed: "The sign-in could not be verified. Begin it again; if that does not help, ask whoever runs this gateway.", "无法验证此次登录。请重新登录；如仍失败，请联系网关管理员。";
    provider_refused: "The identity provider has refused the sign-in.", "身份提供方拒绝了此次登录。";
    quota: "Requests in total", "请求总数";
    quotas: "Quotas of the workspace", "工作空间的额度";
    rate_burst: "Burst", "突发";
    rate_limit: "Requests per second", "每秒请求数";
    rate_of_plan: "Highest rate of a key", "单个密钥的最高速率";
    readiness: "This node", "本节点";
    reason: "Reason", "原因";
    reasoning: "Reasoning", "推理";
    regenerate: "New secret", "更换密文";
    regenerate_hint: "The key gets a new secret. Id, limits and statistics stay.", "密钥会得到新的密文，标识、限额和统计保持不变。";
    reload: "Reload the config", "重新加载配置";
    reload_failed: "The config was not reloaded", "配置未重新加载";
    reload_failed_hint: "The config in force has not changed.", "当前生效的配置没有变化。";
    reload_hint: "This node reads its config file again and applies it completely, or not at all and says why.", "本节点重新读取配置文件，要么完整应用，要么完全不变并说明原因。";
    replace_prices: "Replace all prices", "替换全部价格";
    request: "Request", "请求";
    requests: "Requests", "请求";
    resource: "Resource", "资源";
    response_time: "Response time", "响应时间";
    restore: "Restore", "恢复";
    retention: "Days that usage is kept", "用量保留天数";
    role_admin: "admin", "管理员";
    role_platform: "platform", "平台";
    role_viewer: "viewer", "只读";
    route: "Route", "路由";
    save: "Save", "保存";
    scopes: "Scopes", "权限范围";
    search: "Search", "搜索";
    search_keys: "Name, description or hint", "名称、描述或提示";
    search_on: "Nothing in this part. The next page searches on.", "这一部分没有结果，下一页会继续搜索。";
    seconds_ago: "s ago", "秒前";
    secret_of: "Secret of", "密文：";
    secret_once: "This secret is shown only now. Copy it to where it is used: it is not stored, and nobody can show it again.", "此密文仅在此刻显示。请将其复制到使用之处：它不会被保存，也无法再次显示。";
    see_fields: "Some fields are not right. Each says below what is allowed.", "部分字段有误，各字段下方说明了允许的内容。";
    served: "Served", "已完成";
    session_hint: "A session ends with its token, after twelve hours, or when the browser is closed.", "会话在令牌失效、满十二小时或关闭浏览器时结束。";
    session_over: "The session is over. Sign in again.", "会话已结束，请重新登录。";
    settings: "Settings", "设置";
    seven_days: "7 days", "7 天";
    share: "Share", "占比";
    show: "Show", "显示";
    sign_in: "Sign in", "登录";
    sign_out: "Sign out", "退出";
    skip: "Skip to the content", "跳到正文";
    span: "Time", "时间";
    start_page: "Start page", "首页";
    state: "State", "状态";
    status: "Status", "状态码";
    store_away: "The database cannot be reached. Requests of clients are still decided from memory and recorded on disk; what is listed and changed here needs the database.", "无法连接数据库。客户端请求仍由内存中的数据判定并记录在磁盘上；此处的列表和修改需要数据库。";
    store_away_title: "The database is away", "数据库不可用";
    take_back: "Take back", "收回";
    target: "Record", "对象";
    theme_auto: "Automatic", "自动";
    theme_dark: "Dark", "深色";
    theme_light: "Light", "浅色";
    thirty_days: "for 30 days", "30 天";
    tiers: "Answers with more input", "输入更多的响应";
    time_utc: "Time (UTC)", "时间（UTC）";
    to_key: "To the key", "查看密钥";
    to_utc: "To (UTC)", "截止（UTC）";
    today: "Today", "今天";
    tokens: "Tokens", "令牌数";
    too_many_tries: "Too many failed sign-ins from this address. Try again in a minute.", "该地址登录失败次数过多，请一分钟后再试。";
    traffic: "Bytes in / out", "流入 / 流出";
    try_again: "Try again", "重试";
    type_name: "To confirm, type", "请输入以下名称确认：";
    unreached: "No backend", "未到达后端";
    until: "Until (UTC)", "截止（UTC）";
    usage: "Usage", "用量";
    usage_hint: "According to the ledger, whole days in UTC. Usage of deleted keys counts.", "以账本为准，按 UTC 整日计算，包含已删除密钥的用量。";
    use_it: "Use it", "如何使用";
    use_it_hint: "Put the address of your gateway in place of GATEWAY, and a path of a route in place of PATH.", "请将 GATEWAY 换成您的网关地址，将 PATH 换成某个路由的路径。";
    used_up: "Used up", "已用完";
    version: "Version", "版本";
    week_day: "First day of the week", "每周起始日";
    who: "Who", "操作者";
    with_keys: "with all its keys", "连同其全部密钥";
    workspace: "Workspace", "工作空间";
    workspace_id: "workspace id", "工作空间标识";
    workspaces: "Workspaces", "工作空间";
    wrong_name: "That is not its name. Nothing was deleted.", "名称不符，未删除任何内容。";
    your_id: "Your id", "您的标识";
    zone: "Time zone", "时区";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;

    /// Texts that are the same in both languages.
    const SAME: [&str; 2] = ["p50", "p95"];

    #[test]
    fn every_text_is_there_in_both_languages() {
        for (name, en, zh) in Texts::ALL {
            assert!(!en.is_empty() && !zh.is_empty(), "{name}");
            let is_chinese = zh.chars().any(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
            assert!(is_chinese || SAME.contains(name) || name.starts_with("other_lang"), "{name}: {zh}");
        }
    }

    #[test]
    fn templates_have_no_texts_of_their_own() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin/console/templates");
        for file in fs::read_dir(folder).expect("templates") {
            let path = file.expect("a file").path();
            let text = fs::read_to_string(&path).expect("text");
            for said in ["title", "placeholder", "aria-label", "alt"] {
                for value in text.split(&format!(" {said}=\"")).skip(1) {
                    let value = value.split('"').next().unwrap_or_default();
                    let is_own = without_code(value).chars().any(char::is_alphabetic);
                    // Examples of values are the same in every language, and UTC is a name.
                    let is_example = ["key.update", "429"].contains(&value) || value.ends_with(" UTC");
                    assert!(!is_own || is_example, "{}: {said}={value}", path.display());
                }
            }
            for between in between_tags(&without_code(&text)) {
                let words = between.trim();
                let names = ["", "Keygate", "UTC", "UTC · ", "· Keygate"];
                let is_command = words.starts_with("keygate token");
                let has_letter = words.replace("&amp;", "").chars().any(char::is_alphabetic);
                assert!(!has_letter || names.contains(&words) || is_command, "{}: {words}", path.display());
            }
        }
    }

    /// A template without its expressions and statements.
    fn without_code(text: &str) -> String {
        let mut plain = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(['{']) {
            let (before, code) = rest.split_at(start);
            plain.push_str(before);
            let end = code.find("}}").into_iter().chain(code.find("%}")).min();
            let Some(end) = end.filter(|_| code.starts_with("{{") || code.starts_with("{%")) else {
                plain.push('{');
                rest = &code[1..];
                continue;
            };
            rest = &code[end + 2..];
        }
        plain + rest
    }

    fn between_tags(text: &str) -> Vec<String> {
        text.split('<').filter_map(|part| part.split_once('>').map(|(_, after)| after.to_owned())).collect()
    }
}
