/** Lets modules import style sheets. esbuild collects the sheets into one file. */
declare module "*.css";
