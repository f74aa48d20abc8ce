// An identity provider, https://github.com/panva/node-oidc-provider, with two clients: `console`, which gets tokens, and
// `keygate`, which asks about them. Prints its issuer, on the port in the first argument or a free one.

import { createServer } from 'node:http';
import { generateKeyPairSync } from 'node:crypto';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

// The package is installed in the folder where this runs.
const found = createRequire(`${process.cwd()}/`).resolve('oidc-provider');
const { default: Provider } = await import(pathToFileURL(found));

const server = createServer();
server.listen(Number(process.argv[2] ?? 0), '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  const key = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: `started-${Date.now()}` };
  const machine = { redirect_uris: [], response_types: [] };
  const provider = new Provider(issuer, {
    jwks: { keys: [key] },
    clients: [
      { ...machine, client_id: 'console', client_secret: 'console-secret', grant_types: ['client_credentials'] },
      { ...machine, client_id: 'keygate', client_secret: 'keygate: secret & more', grant_types: [] },
    ],
    ttl: { ClientCredentials: 600 },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true, allowedPolicy: () => true },
      revocation: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          audience: resource.replace(/\/opaque$/, ''),
          scope: '',
          accessTokenFormat: resource.endsWith('/opaque') ? 'opaque' : 'jwt',
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
    extraTokenClaims: () => ({ org: 'shop', groups: ['staff', 'orders-admin'] }),
  });
  server.on('request', provider.callback());
  console.log(issuer);
});
