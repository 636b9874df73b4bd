console.log("building with", process.version)
