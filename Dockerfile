# The image of the service holds node, the libraries that node links, the sources and their packages. It has no shell.
# docs/container.md explains how to build and run it, with BuildKit or without.

# The build image has Node 24 with npm on Debian or another glibc Linux. The result takes only node and its libraries from it. So
# the build image may hold a registry's settings and certificates. A release names it by its digest.
ARG NODE_IMAGE=node:24-bookworm-slim

FROM ${NODE_IMAGE} AS build
WORKDIR /app

# Packages are installed first, because they change less often than the sources. The image needs no package's install script.
COPY package.json package-lock.json .npmrc ./
RUN npm ci --omit=dev --ignore-scripts --no-progress
# The packages of the page are for development only, and npm uninstall below removes them.
RUN npm install --no-save --save-prod --omit=dev --ignore-scripts --no-progress $(node --print '\
    const { devDependencies } = JSON.parse(fs.readFileSync("package.json")); \
    ["esbuild", "preact", "uplot", "swagger-ui-dist", "@zip.js/zip.js", "pickleparser", "@msgpack/msgpack"] \
      .map((name) => `${name}@${devDependencies[name]}`).join(" ")')

COPY LICENSE ./
COPY scripts/build-kernels.ts scripts/build-page.ts scripts/
COPY page page
COPY clients/typescript/package.json clients/typescript/
COPY clients/typescript/src clients/typescript/src
COPY schemas schemas
COPY src src
# The result omits the parts that only the build needs: the compiler, the kernels' sources, and the npm package node.
RUN node scripts/build-kernels.ts \
    && node scripts/build-page.ts \
    && npm uninstall --no-save --omit=dev --ignore-scripts --no-progress assemblyscript node \
    && mkdir -p /image/app/build /image/etc \
    && cp -R LICENSE package.json node_modules src /image/app/ \
    && rm -rf /image/app/src/kernels /image/app/node_modules/.bin /image/app/node_modules/.package-lock.json \
    && cd /image/app/node_modules \
    && find . -type d \( -name test -o -name tests -o -name __tests__ -o -name spec -o -name specs \
         -o -name benchmark -o -name benchmarks -o -name examples -o -name docs \) -prune -exec rm -r {} + \
    && find . -type f \( -name '*.map' -o -name '*.ts' -o -name '*.mts' -o -name '*.cts' -o -name 'test.js' -o -name '*.test.js' -o -name '*.spec.js' \) -delete \
    && find . -type d -empty -delete \
    && cd /app \
    && cp -R build/kernels.wasm build/page /image/app/build/ \
    && echo 'stepd:x:10001:10001:stepd:/app:/sbin/nologin' > /image/etc/passwd \
    && echo 'stepd:x:10001:' > /image/etc/group

# node, its loader and its libraries keep their paths, so that node finds them. Their licences are copied too. So is what the package
# manager knows of the libraries, in the folder in which scanners look for it in images without a package manager.
RUN node=$(command -v node) \
    && mkdir -p /image/usr/local/bin \
    && cp -L "$node" /image/usr/local/bin/node \
    && for file in $(ldd "$node" | grep -o '/[^ ]*') /etc/os-release; do cp -L --parents "$file" /image/ || exit 1; done \
    && for file in /usr/local/LICENSE /usr/share/doc/libc6/copyright /usr/share/doc/libgcc-s1/copyright /usr/share/doc/libstdc++6/copyright; do \
         if [ -f "$file" ]; then cp -L --parents "$file" /image/; fi; \
       done \
    && if command -v dpkg-query > /dev/null; then \
         mkdir -p /image/var/lib/dpkg/status.d \
         && for file in $(ldd "$node" | grep -o '/[^ ]*') /usr/lib/os-release; do \
              owner=$(dpkg-query --search "$file" "$(readlink -f "$file")" "${file#/usr}" 2> /dev/null | head -n 1 | cut -d : -f 1); \
              [ -n "$owner" ] || { echo "no package has $file" >&2; exit 1; }; \
              dpkg-query --status "$owner" > "/image/var/lib/dpkg/status.d/$owner" || exit 1; \
            done; \
       fi

FROM scratch
COPY --from=build /image /

ARG VERSION=0.1.0
ARG REVISION=unknown
ARG NODE_IMAGE
LABEL org.opencontainers.image.title="stepd" \
      org.opencontainers.image.description="A stateless optimizer microservice: parameters, gradients and state in, new parameters and new state out, bit-identical on every machine." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${NODE_IMAGE}"

WORKDIR /app
# The user is a number, so that Kubernetes can tell that the user is not root.
USER 10001:10001
ENV NODE_ENV=production STEPD_HOST=0.0.0.0 STEPD_PORT=8080
EXPOSE 8080
STOPSIGNAL SIGTERM
# The image has no program except node, so node runs the health check. It calls the address on which the service listens.
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 CMD ["/usr/local/bin/node", "--eval", "\
const { STEPD_ADMIN_PORT: adminPort, STEPD_SOCKET: socketPath, STEPD_PORT: port, STEPD_TLS_CERT_FILE: certificate } = process.env; \
const place = adminPort ? { port: adminPort } : socketPath ? { socketPath } : { port }; \
const { get } = require(certificate && !adminPort ? 'node:https' : 'node:http'); \
const fail = (cause) => { console.error(cause); process.exit(1); }; \
get({ host: '127.0.0.1', ...place, path: '/health/live', timeout: 4000, rejectUnauthorized: false }, ({ statusCode }) => { \
  if (statusCode !== 200) fail('status ' + statusCode); \
  process.exit(0); \
}).on('timeout', () => fail('no answer within 4 s')).on('error', ({ message }) => fail(message));"]
ENTRYPOINT ["/usr/local/bin/node", "--disable-sigusr1", "/app/src/main.ts"]
