// The identity provider of a company, for the console's test: `provider.mjs CONSOLE CLIENT_SECRET` prints its issuer and serves until it is ended.
// Its pages are our own, because those that come with it load fonts from elsewhere. Whoever names an account is that person.

import http from "node:http";
import { Provider } from "oidc-provider";

const [home, secret] = process.argv.slice(2);
const PEOPLE = {
  ada: { name: "Ada Lovelace", groups: ["shop-admins", "everybody"] },
  vera: { name: "Vera Rubin", groups: ["shop-viewers"] },
  otto: { name: "Otto Hahn", groups: ["shop-viewers", "lab-admins"] },
  nora: { name: "Nora Barnacle", groups: ["everybody"] },
};

const page = (body) => `<!doctype html><html lang="en"><meta charset="utf-8"><title>Company</title><link rel="icon" href="data:,"><body>${body}`;

const server = http.createServer();
await new Promise((done) => server.listen(0, "127.0.0.1", done));
// Another site than 127.0.0.1, where the console is.
const issuer = `http://localhost:${server.address().port}`;
const provider = new Provider(issuer, {
  clients: [{
    client_id: "console",
    client_secret: secret,
    redirect_uris: [`${home}/console/oidc/callback`],
    post_logout_redirect_uris: [`${home}/console/sign-in`],
  }],
  claims: { openid: ["sub"], profile: ["name"], groups: ["groups"] },
  cookies: { keys: ["of the test"] },
  pkce: { required: () => true },
  ttl: { AccessToken: 600, AuthorizationCode: 60, Grant: 3600, IdToken: 3600, Interaction: 600, Session: 3600 },
  features: {
    devInteractions: { enabled: false },
    rpInitiatedLogout: {
      logoutSource: (ctx, form) => {
        ctx.body = page(`<h1>Leave the company?</h1>${form}<button form="op.logoutForm" name="logout" value="yes">Yes</button>`);
      },
    },
  },
  findAccount: (ctx, id) => PEOPLE[id] && { accountId: id, claims: () => ({ sub: id, ...PEOPLE[id] }) },
  // The company does not ask its people whether its own gateway may know their names.
  async loadExistingGrant(ctx) {
    const grant = new ctx.oidc.provider.Grant({ clientId: ctx.oidc.client.clientId, accountId: ctx.oidc.session.accountId });
    grant.addOIDCScope("openid profile groups");
    await grant.save();
    return grant;
  },
});

const serve = provider.callback();
server.on("request", async (request, response) => {
  if (!request.url.startsWith("/interaction/")) return serve(request, response);
  if (request.method === "GET") {
    response.setHeader("content-type", "text/html");
    return response.end(page('<h1>Company</h1><form method="post"><input name="login" aria-label="Login"><button>Enter</button></form>'));
  }
  let body = "";
  for await (const part of request) body += part;
  const login = { accountId: new URLSearchParams(body).get("login") };
  return provider.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
});
console.log(issuer);
