// Import this first. @waku/sdk asks for Node 22; its dependencies need one thing
// that Node 20 has not.
Promise.withResolvers ??= function () {
  let resolve, reject;
  const promise = new this((res, rej) => {
    resolve = res;
    reject = rej;
  });
  return { promise, resolve, reject };
};
